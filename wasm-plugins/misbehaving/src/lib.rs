//! A plugin that does what no plugin should, for tests of the host.
//!
//! ```text
//! behaviour = loop    # see `Behaviour`
//! port = 7777         # packets to this destination port only; default: all
//! ```
//!
//! On a host other than wasm32 it behaves well: there is nothing to contain it.

#![deny(unsafe_code)]

use weft_policy_sdk::prelude::*;

/// What it does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing.
    #[default]
    None,
    /// Never returns.
    Loop,
    /// Executes `unreachable`.
    Trap,
    /// Calls itself until the stack is gone.
    Recurse,
    /// Takes memory until there is none; returns then.
    Grow,
    /// Claims a reply longer than the window.
    Reply,
    /// Rewrites, which its manifest does not declare.
    Undeclared,
    /// Gives the host a key outside its memory.
    Pointer,
    /// Never accepts or refuses a configuration.
    ConfigureLoop,
    /// Executes `unreachable` over its configuration.
    ConfigureTrap,
    /// Refuses its configuration with a text of a megabyte.
    ConfigureRefuse,
}

/// The filter.
#[derive(Debug, Default)]
pub struct Misbehaving {
    behaviour: Behaviour,
    port: Option<u16>,
    hoard: Vec<Vec<u8>>,
}

impl Filter for Misbehaving {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        for line in config.lines()? {
            match line? {
                ("behaviour", name) => self.behaviour = behaviour(name)?,
                ("port", port) => {
                    let bad = |_| format!("port `{port}`: expected a number");
                    self.port = Some(port.parse().map_err(bad)?);
                }
                (key, _) => return Err(format!("unknown key `{key}`")),
            }
        }
        match self.behaviour {
            Behaviour::ConfigureLoop => forever(),
            Behaviour::ConfigureTrap => trap(),
            Behaviour::ConfigureRefuse => return Err("no ".repeat(350_000)),
            _ => {}
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, _flow: &mut Flow, host: &Host) -> Verdict {
        if self.port.is_some_and(|port| packet.destination_port() != port) {
            return Verdict::Continue;
        }
        match self.behaviour {
            Behaviour::Loop => forever(),
            Behaviour::Trap => trap(),
            Behaviour::Recurse => {
                let depth = recurse(u64::from(packet.len()));
                return if depth == 1 { Verdict::Accept } else { Verdict::Continue };
            }
            Behaviour::Grow => self.grow(),
            Behaviour::Reply => return Verdict::Reply(vec![0x45; 100_000], 0),
            Behaviour::Undeclared => return Verdict::Rewrite(Rewrite::new().destination_port(1)),
            Behaviour::Pointer => bad_pointer(host),
            Behaviour::None
            | Behaviour::ConfigureLoop
            | Behaviour::ConfigureTrap
            | Behaviour::ConfigureRefuse => {}
        }
        Verdict::Continue
    }
}

fn behaviour(name: &str) -> Result<Behaviour, String> {
    Ok(match name {
        "none" => Behaviour::None,
        "loop" => Behaviour::Loop,
        "trap" => Behaviour::Trap,
        "recurse" => Behaviour::Recurse,
        "grow" => Behaviour::Grow,
        "reply" => Behaviour::Reply,
        "undeclared" => Behaviour::Undeclared,
        "pointer" => Behaviour::Pointer,
        "configure-loop" => Behaviour::ConfigureLoop,
        "configure-trap" => Behaviour::ConfigureTrap,
        "configure-refuse" => Behaviour::ConfigureRefuse,
        other => return Err(format!("unknown behaviour `{other}`")),
    })
}

impl Misbehaving {
    fn grow(&mut self) {
        loop {
            let mut piece = Vec::new();
            if piece.try_reserve_exact(1 << 20).is_err() {
                return;
            }
            piece.resize(1 << 20, 1);
            self.hoard.push(piece);
            if cfg!(not(target_arch = "wasm32")) {
                return;
            }
        }
    }
}

fn forever() {
    while cfg!(target_arch = "wasm32") {
        std::hint::black_box(());
    }
}

#[expect(clippy::panic, reason = "what it is here for")]
fn trap() {
    if cfg!(target_arch = "wasm32") {
        panic!("as asked");
    }
}

/// Needs its frame after the call, so that it is no loop.
fn recurse(n: u64) -> u64 {
    let here = std::hint::black_box([n; 16]);
    if cfg!(not(target_arch = "wasm32")) || here[3] == u64::MAX {
        return n;
    }
    recurse(n.wrapping_add(1)).wrapping_add(here[7])
}

#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
fn bad_pointer(host: &Host) {
    #[link(wasm_import_module = "weft")]
    unsafe extern "C" {
        fn map_remove(key: usize, key_len: usize) -> i32;
    }
    // The import must be there for the manifest's capability to make sense.
    host.map().remove(b"key");
    // SAFETY: the host ends the call; it reads nothing.
    unsafe { map_remove(0xffff_fff0, 0x40) };
}

#[cfg(not(target_arch = "wasm32"))]
fn bad_pointer(host: &Host) {
    host.map().remove(b"key");
}

export_plugin!(
    Misbehaving,
    hooks: hooks::EGRESS | hooks::INGRESS,
    capabilities: capability::MAP | capability::REPLY,
    map_entries: 16,
);
