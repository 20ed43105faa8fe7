//! Compiled code is kept and taken from where it is kept, if it is fit for it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weft_abi::Descriptor;
use weft_pipeline::{Plugin, Verdict};
use weft_wasm_host::{Engine, Module, PluginInstance, Settings, SharedState};

/// Loads `port-block` as after a restart, and sees that it does what it is for.
fn load(directory: &Path) {
    let engine = Engine::with_code_in(directory.to_owned(), 4).unwrap();
    let module = Module::load(&engine, &support::built("port-block")).unwrap();
    let settings = Settings { config: "tcp/80".into(), ..Settings::new("port-block") };
    let mut plugin =
        PluginInstance::new(&module, settings, SharedState::new("port-block")).unwrap();
    let told = support::told(80);
    let asked = Descriptor { length: 60, protocol: 6, destination_port: 80, ..told };
    assert!(plugin.on_packet(&asked, &[0x45; 60]).unwrap().verdict != Verdict::Continue);
}

fn only_file(directory: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    let file = files.next().unwrap();
    assert!(files.next().is_none());
    file
}

#[test]
fn a_module_is_compiled_once() {
    let directory = tempfile::tempdir().unwrap();
    load(directory.path());
    let file = only_file(directory.path());
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    load(directory.path());
    assert_eq!(file.metadata().unwrap().ino(), metadata.ino(), "what is compiled is written anew");
}

#[test]
fn damaged_and_foreign_code_is_compiled_anew() {
    let directory = tempfile::tempdir().unwrap();
    load(directory.path());
    let file = only_file(directory.path());
    let good = std::fs::read(&file).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    // Whole, and of another runtime.
    let foreign = b"\x7fELF by somebody else";
    let foreign = [&Sha256::digest(foreign)[..], foreign].concat();
    for code in [&damaged[..], &good[..good.len() / 2], b"", &foreign] {
        std::fs::write(&file, code).unwrap();
        load(directory.path());
        assert!(std::fs::read(&file).unwrap() == good);
    }
}

#[test]
fn a_directory_that_others_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = Engine::with_code_in(directory.path().to_owned(), 4).unwrap_err();
    assert!(error.to_string().contains("can be written by others"), "{error}");
}
