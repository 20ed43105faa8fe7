//! A live instance: one store, its memory, the calls into it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Memory, Store, TypedFunc};
use weft_abi::{
    ANSWERED, ASK_AGAIN, Answer, Descriptor, EXPORT_ALLOCATE, EXPORT_CONFIGURE, EXPORT_EXCHANGE,
    EXPORT_ON_PACKET, VerdictCode, capability,
};
use weft_model::Timestamp;

use crate::clock::{self, Call};
use crate::engine::Engine;
use crate::error::{ConfigureError, LoadError, RuntimeError};
use crate::host::{HostState, range};
use crate::module::{MEMORY, Module};
use crate::shared::SharedState;
use crate::{CONFIGURE_DEADLINE, CONFIGURE_DEADLINE_PER_MIB, REFUSAL_MAX};

/// Deadline of a configuration of so many bytes.
fn configure_deadline(bytes: usize) -> Duration {
    let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    CONFIGURE_DEADLINE.saturating_add(CONFIGURE_DEADLINE_PER_MIB.saturating_mul(mib))
}

/// Offset of the window in the exchange area.
const WINDOW: usize = Descriptor::LEN + Answer::LEN;
/// [`weft_abi::HEADER_WINDOW`].
const HEADERS: usize = 128;
/// Offset of [`Descriptor::window`] in its layout.
const WINDOW_LEN: Range<usize> = 4..8;

pub(crate) struct Live {
    engine: Engine,
    store: Store<HostState>,
    memory: Memory,
    on_packet: TypedFunc<(), i32>,
    allocate: TypedFunc<i32, i32>,
    configure: TypedFunc<(i32, i32), i64>,
    exchange: Range<usize>,
    window: usize,
    capabilities: u32,
    /// The last one there was.
    answer: Answer,
}

/// A verdict that has been checked, its rewrite in [`Live::answer`], its reply still in the guest's
/// memory.
#[derive(Clone, Copy)]
pub(crate) enum Decision {
    Continue,
    Accept,
    Drop(u32),
    Reject(u32),
    Rewrite,
    Reply(usize, u32),
    WouldDrop(u32),
}

pub(crate) struct Decided {
    pub(crate) decision: Decision,
    /// [`Live::answer`] is of this packet.
    pub(crate) answered: bool,
    /// See [`ASK_AGAIN`].
    pub(crate) again: bool,
}

/// A call that failed. The instance must not be called again.
pub(crate) enum CallError {
    Trap(RuntimeError),
    Deadline,
    /// An answer that means nothing.
    Nonsense(&'static str),
}

impl Live {
    /// Makes an instance with up to `memory_max` bytes of memory. Runs its start function.
    pub(crate) fn new(
        module: &Module,
        shared: Arc<SharedState>,
        memory_max: usize,
    ) -> Result<Self, LoadError> {
        let engine = module.engine().clone();
        let instantiate = |e: wasmtime::Error| LoadError::Instantiate(e.into());
        let now = shared.last_seen();
        let state =
            HostState { shared, memory: None, now, ticks: 0, deadline_passed: false, memory_max };
        let mut store = Store::new(engine.wasmtime(), state);
        store.limiter(|state| state);
        // Asked at each tick, so that no deadline has to be set for each call.
        store.epoch_deadline_callback(|mut context| Ok(context.data_mut().tick()));
        store.set_epoch_deadline(1);
        let _watched = clock::watch().map_err(LoadError::Clock)?;
        let _call = Call::begin(module.engine().wasmtime());
        store.data_mut().begin(clock::ticks(CONFIGURE_DEADLINE));
        let instance = module.pre().instantiate(&mut store).map_err(instantiate)?;
        let memory =
            instance.get_memory(&mut store, MEMORY).ok_or(LoadError::MissingExport(MEMORY))?;
        store.data_mut().memory = Some(memory);
        let where_is =
            instance.get_typed_func::<(), i32>(&mut store, EXPORT_EXCHANGE).map_err(instantiate)?;
        let on_packet =
            instance.get_typed_func(&mut store, EXPORT_ON_PACKET).map_err(instantiate)?;
        let allocate = instance.get_typed_func(&mut store, EXPORT_ALLOCATE).map_err(instantiate)?;
        let configure =
            instance.get_typed_func(&mut store, EXPORT_CONFIGURE).map_err(instantiate)?;
        let address = where_is.call(&mut store, ()).map_err(instantiate)?.cast_unsigned();
        let window = module.info().window;
        let start = usize::try_from(address).unwrap_or(usize::MAX);
        let exchange = start..start.saturating_add(WINDOW + window);
        // Memory never shrinks, so this holds for the life of the instance.
        if memory.data(&store).get(exchange.clone()).is_none() {
            return Err(LoadError::Exchange { address });
        }
        let capabilities = module.info().capabilities;
        Ok(Self {
            engine,
            store,
            memory,
            on_packet,
            allocate,
            configure,
            exchange,
            window,
            capabilities,
            answer: Answer::default(),
        })
    }

    /// Asks about one packet. `ticks` is the deadline.
    #[inline]
    pub(crate) fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
        ticks: u64,
    ) -> Result<Decided, CallError> {
        let shown = packet.get(..self.window).unwrap_or(packet);
        let (memory, state) = self.memory.data_and_store_mut(&mut self.store);
        let area = memory.get_mut(self.exchange.clone());
        let parts = area.and_then(|area| {
            let (told, rest) = area.split_first_chunk_mut::<{ Descriptor::LEN }>()?;
            Some((told, rest.get_mut(Answer::LEN..)?))
        });
        let Some((told, window)) = parts else {
            return Err(CallError::Nonsense("its memory is gone"));
        };
        descriptor.write_to(told);
        let len = u32::try_from(shown.len()).unwrap_or(u32::MAX);
        told[WINDOW_LEN].copy_from_slice(&len.to_le_bytes());
        show(window, shown);
        state.now = Timestamp(descriptor.now);
        state.begin(ticks);
        if clock::watch_thread().is_err() {
            return Err(CallError::Nonsense("the kernel has no timer for its deadline"));
        }
        let called = {
            let _call = Call::begin(self.engine.wasmtime());
            self.on_packet.call(&mut self.store, ())
        };
        match called {
            Ok(code) => self.decide(code, descriptor.ip_version),
            Err(e) => Err(self.failed(e)),
        }
    }

    #[inline]
    fn decide(&mut self, code: i32, ip_version: u8) -> Result<Decided, CallError> {
        let again = code & ASK_AGAIN != 0;
        let verdict = VerdictCode::from_i32(code & !(ANSWERED | ASK_AGAIN))
            .ok_or(CallError::Nonsense("it returned a number that is no verdict"))?;
        // Most packets: a bare verdict.
        let decision = match verdict {
            VerdictCode::Continue => Decision::Continue,
            VerdictCode::Accept => Decision::Accept,
            _ => return self.decide_with_answer(verdict, code, ip_version),
        };
        let answered = code & ANSWERED != 0;
        if answered {
            self.read_answer()?;
        }
        Ok(Decided { decision, answered, again })
    }

    fn decide_with_answer(
        &mut self,
        verdict: VerdictCode,
        code: i32,
        ip_version: u8,
    ) -> Result<Decided, CallError> {
        if code & ANSWERED == 0 {
            self.answer = Answer::default();
        } else {
            self.read_answer()?;
        }
        let decision = match verdict {
            VerdictCode::Continue => Decision::Continue,
            VerdictCode::Accept => Decision::Accept,
            VerdictCode::Drop => Decision::Drop(self.answer.reason),
            VerdictCode::Reject => Decision::Reject(self.answer.reason),
            VerdictCode::Rewrite => self.rewrite(ip_version)?,
            VerdictCode::Reply => Decision::Reply(self.reply_len()?, self.answer.reason),
            VerdictCode::WouldDrop => Decision::WouldDrop(self.answer.reason),
        };
        Ok(Decided { decision, answered: true, again: code & ASK_AGAIN != 0 })
    }

    fn read_answer(&mut self) -> Result<(), CallError> {
        let area = self.memory.data(&self.store).get(self.exchange.clone()).unwrap_or_default();
        let answer: Option<&[u8; Answer::LEN]> =
            area.get(Descriptor::LEN..WINDOW).and_then(|b| b.try_into().ok());
        let Some(answer) = answer else {
            return Err(CallError::Nonsense("its memory is gone"));
        };
        self.answer = Answer::from_bytes(answer)
            .map_err(|_| CallError::Nonsense("its answer has fields of a later version"))?;
        Ok(())
    }

    /// The last answer there was; see [`Decided::answered`].
    pub(crate) fn answer(&self) -> &Answer {
        &self.answer
    }

    fn rewrite(&self, ip_version: u8) -> Result<Decision, CallError> {
        self.needs(capability::REWRITE, "it rewrote without `capability::REWRITE`")?;
        let fields = &self.answer.rewrite;
        let of_family = |address: &[u8; 16]| {
            let mapped = address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
            mapped == (ip_version == 4)
        };
        if [fields.source, fields.destination].iter().flatten().all(of_family) {
            Ok(Decision::Rewrite)
        } else {
            Err(CallError::Nonsense("it rewrote to an address of the other family"))
        }
    }

    fn reply_len(&self) -> Result<usize, CallError> {
        self.needs(capability::REPLY, "it replied without `capability::REPLY`")?;
        match usize::try_from(self.answer.reply_len) {
            Ok(len) if (1..=self.window).contains(&len) => Ok(len),
            _ => Err(CallError::Nonsense("its reply is empty or longer than its window")),
        }
    }

    fn needs(&self, capability: u32, or: &'static str) -> Result<(), CallError> {
        if self.capabilities & capability == 0 { Err(CallError::Nonsense(or)) } else { Ok(()) }
    }

    /// The first `len` bytes of the window.
    pub(crate) fn reply(&self, len: usize) -> &[u8] {
        let start = self.exchange.start.saturating_add(WINDOW);
        self.memory.data(&self.store).get(start..start.saturating_add(len)).unwrap_or_default()
    }

    /// Hands a configuration over. After [`ConfigureError::Trap`] or
    /// [`ConfigureError::Deadline`] the instance must not be called again.
    pub(crate) fn configure(&mut self, config: &[u8], kind: i32) -> Result<(), ConfigureError> {
        let no_room = || ConfigureError::NoRoom(config.len());
        let len = i32::try_from(config.len()).map_err(|_| no_room())?;
        let state = self.store.data_mut();
        state.now = state.shared.last_seen();
        state.begin(clock::ticks(configure_deadline(config.len())));
        let _watched = clock::watch().map_err(|e| ConfigureError::Trap(e.to_string()))?;
        let engine = self.engine.clone();
        let _call = Call::begin(engine.wasmtime());
        let address = match self.allocate.call(&mut self.store, len) {
            Ok(0) => return Err(no_room()),
            Ok(address) => address,
            Err(e) => return Err(self.configure_failed(e)),
        };
        let memory = self.memory.data_mut(&mut self.store);
        let buffer = range(address, len).and_then(|r| memory.get_mut(r)).ok_or_else(no_room)?;
        buffer.copy_from_slice(config);
        match self.configure.call(&mut self.store, (len, kind)) {
            Ok(0) => Ok(()),
            Ok(refusal) => Err(ConfigureError::Refused(self.refusal(refusal.cast_unsigned()))),
            Err(e) => Err(self.configure_failed(e)),
        }
    }

    /// Copies the text out that `address << 32 | length` points at, in one line, cut to
    /// [`REFUSAL_MAX`].
    fn refusal(&self, text: u64) -> String {
        let start = usize::try_from(text >> 32).unwrap_or(usize::MAX);
        let len = usize::try_from(text & 0xffff_ffff).unwrap_or(usize::MAX).min(REFUSAL_MAX);
        match self.memory.data(&self.store).get(start..start.saturating_add(len)) {
            Some(text) => {
                String::from_utf8_lossy(text).replace(char::is_control, " ").trim().to_owned()
            }
            None => "(its text is outside its memory)".to_owned(),
        }
    }

    fn failed(&self, error: wasmtime::Error) -> CallError {
        if self.store.data().deadline_passed {
            CallError::Deadline
        } else {
            CallError::Trap(error.into())
        }
    }

    fn configure_failed(&self, error: wasmtime::Error) -> ConfigureError {
        match self.failed(error) {
            CallError::Deadline => ConfigureError::Deadline,
            CallError::Trap(error) => ConfigureError::Trap(error.to_string()),
            CallError::Nonsense(what) => ConfigureError::Trap(what.to_owned()),
        }
    }
}

/// Copies the packet, or what the window holds of it.
#[inline]
fn show(window: &mut [u8], packet: &[u8]) {
    // Most plugins want the headers only: a copy of known length needs no call.
    if let (HEADERS, Some(packet)) = (packet.len(), packet.first_chunk::<HEADERS>())
        && let Some(window) = window.first_chunk_mut::<HEADERS>()
    {
        *window = *packet;
    } else if let Some(window) = window.get_mut(..packet.len()) {
        window.copy_from_slice(packet);
    }
}
