//! Links Intel's ipsec-mb, a static library of Debian's `libipsec-mb-dev`, where it is there.

#![allow(clippy::print_stdout, reason = "how a build script speaks")]

use std::path::PathBuf;

const SHIM: &str = "c/ipsec_mb.c";
const ARCHIVE: &str = "libIPSec_MB.a";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ipsec_mb)");
    println!("cargo::rerun-if-changed={SHIM}");
    // Only its code for x86-64 is faster than ring's.
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    match archive().ok_or(format!("there is no {ARCHIVE}")).and_then(|archive| {
        let shim = cc::Build::new().file(SHIM).cargo_warnings(false).try_compile("weft_ipsec_mb");
        shim.map(|()| archive).map_err(|error| error.to_string())
    }) {
        Ok(archive) => {
            println!("cargo::rerun-if-changed={}", archive.display());
            println!("cargo::rustc-link-lib=static:-bundle=IPSec_MB");
            println!("cargo::rustc-cfg=ipsec_mb");
        }
        Err(why) => println!(
            "cargo::warning=WireGuard will do without AVX-512: install libipsec-mb-dev, then \
             `cargo clean -p weft-aead` ({why})"
        ),
    }
}

/// Where the C compiler finds the library.
fn archive() -> Option<PathBuf> {
    let compiler = cc::Build::new().cargo_metadata(false).try_get_compiler().ok()?;
    let mut command = compiler.to_command();
    let output = command.arg(format!("-print-file-name={ARCHIVE}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    // The name alone comes back if there is none.
    path.is_absolute().then_some(path)
}
