//! The macro that makes a module of a filter.

use weft_abi::{HEADER_WINDOW, Manifest, WINDOW_MAX, capability, hooks, protocols};

/// Makes a plugin module of a [`Filter`](crate::Filter).
///
/// After the type come the fields of [`Manifest`] that differ from their defaults. Default are: name
/// and version of the package; `hooks::EGRESS`; `protocols::ALL`; every packet; drop on fault; no
/// capabilities; a window of 128 bytes, which holds the headers; no map.
///
/// ```
/// # use weft_policy_sdk::prelude::*;
/// # #[derive(Default)]
/// # struct Mine;
/// # impl Filter for Mine {
/// #     fn on_packet(&mut self, _: &Packet, _: &mut Flow, _: &Host) -> Verdict { Verdict::Continue }
/// # }
/// export_plugin!(Mine, hooks: hooks::INGRESS, capabilities: capability::MAP, map_entries: 1000);
/// ```
///
/// On `wasm32` it emits the exports of the ABI and the section with the manifest; everywhere it
/// implements [`Export`](crate::Export), so that tests can run the filter natively.
#[macro_export]
macro_rules! export_plugin {
    ($filter:ty $(, $field:ident : $value:expr)* $(,)?) => {
        impl $crate::Export for $filter {
            const MANIFEST: $crate::Manifest<'static> = $crate::abi_checked($crate::Manifest {
                $($field: $value,)*
                ..$crate::defaults(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            });
        }

        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        const _: () = {
            const MANIFEST: $crate::Manifest<'static> = <$filter as $crate::Export>::MANIFEST;

            // SAFETY: a custom section, which nothing at run time refers to.
            #[used]
            #[unsafe(link_section = "weft.manifest")]
            static SECTION: [u8; $crate::abi::MANIFEST_LEN] = MANIFEST.to_bytes();

            static AREA: $crate::guest::Area<{ MANIFEST.window as usize }> =
                $crate::guest::Area::new();
            static PLUGIN: $crate::guest::Plugin<$filter> = $crate::guest::Plugin::new();

            // SAFETY: the names are those of the ABI, which nothing else defines.
            #[unsafe(no_mangle)]
            extern "C" fn weft_exchange() -> i32 {
                AREA.address()
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn weft_on_packet() -> i32 {
                PLUGIN.on_packet(&AREA)
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn weft_allocate(len: i32) -> i32 {
                PLUGIN.allocate(len)
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn weft_configure(len: i32, kind: i32) -> i64 {
                PLUGIN.configure(len, kind)
            }
        };
    };
}

/// The manifest that [`export_plugin!`](crate::export_plugin) starts from.
#[must_use]
pub const fn defaults<'a>(name: &'a str, version: &'a str) -> Manifest<'a> {
    Manifest {
        name,
        version,
        hooks: hooks::EGRESS,
        protocols: protocols::ALL,
        per_flow: false,
        skip_on_fault: false,
        capabilities: 0,
        window: HEADER_WINDOW,
        map_entries: 0,
    }
}

/// Turns what the host would refuse into an error of the compiler.
///
/// # Panics
/// At compile time, with a text that names the field.
#[doc(hidden)]
#[must_use]
pub const fn abi_checked(manifest: Manifest<'_>) -> Manifest<'_> {
    let window = manifest.window;
    assert!(window >= HEADER_WINDOW && window <= WINDOW_MAX, "`window` is 128 to 65536 bytes");
    assert!(manifest.hooks >= 1 && manifest.hooks <= 3, "`hooks` is EGRESS, INGRESS or both");
    assert!(manifest.protocols >= 1 && manifest.protocols <= protocols::ALL, "bad `protocols`");
    let map = manifest.capabilities & capability::MAP != 0;
    assert!(map == (manifest.map_entries > 0), "`map_entries` and `capability::MAP` go together");
    manifest
}
