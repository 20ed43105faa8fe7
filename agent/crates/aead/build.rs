//! Links Intel's ipsec-mb, a static library of Debian's `libipsec-mb-dev`, where it is there.

#![allow(clippy::print_stdout, reason = "how a build script speaks")]

const SHIM: &str = "c/ipsec_mb.c";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ipsec_mb)");
    println!("cargo::rerun-if-changed={SHIM}");
    // Only its code for x86-64 is faster than ring's.
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    if cc::Build::new().file(SHIM).cargo_warnings(false).try_compile("weft_ipsec_mb").is_ok() {
        println!("cargo::rustc-link-lib=static:-bundle=IPSec_MB");
        println!("cargo::rustc-cfg=ipsec_mb");
    } else {
        println!("cargo::warning=WireGuard does without AVX-512: libipsec-mb-dev is not installed");
    }
}
