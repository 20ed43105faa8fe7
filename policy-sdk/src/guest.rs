//! The guest's end of the ABI. Called by [`export_plugin!`](crate::export_plugin) only.
//!
//! A module has one thread, and the host calls one export at a time and none from inside an import,
//! so each export has all of the module's state to itself while it runs.

use std::cell::UnsafeCell;

use weft_abi::{
    ANSWERED, ASK_AGAIN, Answer, CONFIGURE_DELTA, CONFIGURE_FULL, Descriptor, VerdictCode,
};

use crate::{Config, Filter, Flow, Host, Packet, Verdict};

/// What the host takes for a fault: no verdict has this number.
const NO_VERDICT: i32 = -1;

/// The exchange area. All zero, so that it takes no room in the module.
#[repr(C, align(16))]
pub struct Area<const WINDOW: usize>(UnsafeCell<Layout<WINDOW>>);

#[repr(C)]
struct Layout<const WINDOW: usize> {
    descriptor: [u8; Descriptor::LEN],
    answer: [u8; Answer::LEN],
    window: [u8; WINDOW],
}

// SAFETY: one thread, see the module's text.
unsafe impl<const WINDOW: usize> Sync for Area<WINDOW> {}

impl<const WINDOW: usize> Area<WINDOW> {
    #[expect(clippy::new_without_default, reason = "for statics only")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(Layout {
            descriptor: [0; Descriptor::LEN],
            answer: [0; Answer::LEN],
            window: [0; WINDOW],
        }))
    }

    pub fn address(&self) -> i32 {
        self.0.get().addr() as i32
    }
}

/// The filter and what is handed over with its configuration.
pub struct Plugin<F>(UnsafeCell<State<F>>);

struct State<F> {
    filter: Option<F>,
    config: Vec<u8>,
    refusal: String,
}

// SAFETY: one thread, see the module's text.
unsafe impl<F> Sync for Plugin<F> {}

impl<F: Filter> Plugin<F> {
    #[expect(clippy::new_without_default, reason = "for statics only")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(State { filter: None, config: Vec::new(), refusal: String::new() }))
    }

    #[inline]
    pub fn on_packet<const WINDOW: usize>(&self, area: &Area<WINDOW>) -> i32 {
        // SAFETY: exclusive while the export runs, see the module's text.
        let (state, area) = unsafe { (&mut *self.0.get(), &mut *area.0.get()) };
        let Some(filter) = &mut state.filter else { return NO_VERDICT };
        let descriptor = Descriptor::from_bytes(&area.descriptor);
        let shown = usize::try_from(descriptor.window).unwrap_or(WINDOW).min(WINDOW);
        let packet = Packet::new(&descriptor, &area.window[..shown]);
        let mut flow = Flow::new(&descriptor);
        let verdict = filter.on_packet(&packet, &mut flow, &Host::imported());
        let again = if flow.asks_again() { ASK_AGAIN } else { 0 };
        // Most packets.
        match verdict {
            Verdict::Continue if flow.written().is_none() => {
                return VerdictCode::Continue as i32 | again;
            }
            Verdict::Accept if flow.written().is_none() => {
                return VerdictCode::Accept as i32 | again;
            }
            _ => {}
        }
        let (code, answer) = verdict.to_abi(&flow);
        if let Verdict::Reply(reply, _) = &verdict {
            // One that does not fit is for the host to refuse: it sees its length.
            if let Some(window) = area.window.get_mut(..reply.len()) {
                window.copy_from_slice(reply);
            }
        }
        area.answer = answer.to_bytes();
        code as i32 | again | ANSWERED
    }

    pub fn allocate(&self, len: i32) -> i32 {
        // SAFETY: as above.
        let state = unsafe { &mut *self.0.get() };
        let Ok(len) = usize::try_from(len) else { return 0 };
        state.config = Vec::new();
        // At least a byte, so that there is an address.
        if state.config.try_reserve_exact(len.max(1)).is_err() {
            return 0;
        }
        state.config.resize(len, 0);
        state.config.as_mut_ptr().addr() as i32
    }

    pub fn configure(&self, len: i32, kind: i32) -> i64 {
        // SAFETY: as above.
        let state = unsafe { &mut *self.0.get() };
        let config = std::mem::take(&mut state.config);
        let result = if usize::try_from(len) != Ok(config.len()) {
            Err("the configuration is not the one that room was made for".to_owned())
        } else {
            configure(&mut state.filter, &config, kind)
        };
        match result {
            Ok(()) => 0,
            Err(text) => {
                state.refusal = text;
                let address = state.refusal.as_ptr().addr() as u64;
                (address << 32 | state.refusal.len() as u64) as i64
            }
        }
    }
}

fn configure<F: Filter>(filter: &mut Option<F>, config: &[u8], kind: i32) -> Result<(), String> {
    match (kind, filter) {
        (CONFIGURE_FULL, filter) => {
            let mut next = F::default();
            next.configure(Config::Full(config))?;
            *filter = Some(next);
            Ok(())
        }
        (CONFIGURE_DELTA, Some(filter)) => filter.configure(Config::Delta(config)),
        (CONFIGURE_DELTA, None) => Err("a delta before the first full configuration".to_owned()),
        (kind, _) => Err(format!("configuration of unknown kind {kind}")),
    }
}
