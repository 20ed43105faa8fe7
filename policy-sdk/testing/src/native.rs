//! A filter as a plugin of the pipeline, without Wasm.

use weft_abi::{Answer, Descriptor, hooks};
use weft_model::{HookPosition, OnFault, PluginMode, Timestamp};
use weft_pipeline::{Interest, Outcome, Plugin, PluginFault, Verdict};
use weft_policy_sdk::{Config, Export, Flow, Host, Packet};

use crate::map::NativeMap;

/// Runs a filter natively, with the map in memory and the packet's time as the clock.
#[derive(Debug)]
pub struct NativePlugin<F> {
    filter: F,
    interest: Interest,
    map: NativeMap,
    answer: Answer,
    reply: Vec<u8>,
}

impl<F: Export> NativePlugin<F> {
    /// Makes a filter and hands it its configuration.
    ///
    /// # Errors
    /// The text with which the filter refuses it.
    pub fn new(config: impl AsRef<[u8]>) -> Result<Self, String> {
        Self::with_map(config, NativeMap::default())
    }

    /// As [`Self::new`], on a map that others share.
    ///
    /// # Errors
    /// The text with which the filter refuses it.
    pub fn with_map(config: impl AsRef<[u8]>, map: NativeMap) -> Result<Self, String> {
        let mut filter = F::default();
        filter.configure(Config::Full(config.as_ref()))?;
        map.set_capacity(usize::try_from(F::MANIFEST.map_entries).unwrap_or(usize::MAX));
        Ok(Self {
            filter,
            interest: interest::<F>(),
            map,
            answer: Answer::default(),
            reply: Vec::new(),
        })
    }

    /// Hands over another configuration, as the host does.
    ///
    /// # Errors
    /// The text with which the filter refuses it; the one in force stays.
    pub fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        if let Config::Delta(_) = config {
            return self.filter.configure(config);
        }
        let mut filter = F::default();
        filter.configure(config)?;
        self.filter = filter;
        Ok(())
    }

    /// The filter.
    pub fn filter(&self) -> &F {
        &self.filter
    }

    /// Its map and its log.
    pub fn map(&self) -> &NativeMap {
        &self.map
    }
}

fn interest<F: Export>() -> Interest {
    let manifest = F::MANIFEST;
    Interest {
        name: manifest.name.to_owned(),
        position: match manifest.hooks {
            hooks::EGRESS => HookPosition::Egress,
            hooks::INGRESS => HookPosition::Ingress,
            _ => HookPosition::Both,
        },
        priority: 0,
        protocols: manifest.protocols,
        mode: if manifest.per_flow { PluginMode::Flow } else { PluginMode::Packet },
        on_fault: if manifest.skip_on_fault { OnFault::Skip } else { OnFault::Drop },
        revision: 1,
    }
}

impl<F: Export> Plugin for NativePlugin<F> {
    fn interest(&self) -> &Interest {
        &self.interest
    }

    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault> {
        let window = usize::try_from(F::MANIFEST.window).unwrap_or(usize::MAX);
        let shown = packet.get(..window).unwrap_or(packet);
        let mut descriptor = *descriptor;
        descriptor.window = u32::try_from(shown.len()).unwrap_or(u32::MAX);
        self.map.set_now(Timestamp(descriptor.now));
        let mut flow = Flow::new(&descriptor);
        let packet = Packet::new(&descriptor, shown);
        let verdict = self.filter.on_packet(&packet, &mut flow, &Host::new(&self.map));
        self.answer = verdict.to_abi(&flow).1;
        let verdict = match verdict {
            weft_policy_sdk::Verdict::Continue => Verdict::Continue,
            weft_policy_sdk::Verdict::Accept => Verdict::Accept,
            weft_policy_sdk::Verdict::Drop(reason) => Verdict::Drop(reason),
            weft_policy_sdk::Verdict::Reject(reason) => Verdict::Reject(reason),
            weft_policy_sdk::Verdict::Rewrite(_) => Verdict::Rewrite(&self.answer.rewrite),
            weft_policy_sdk::Verdict::Reply(reply, _) => {
                if reply.is_empty() || reply.len() > window {
                    return Err(PluginFault::Trap);
                }
                self.reply = reply;
                Verdict::Reply(&self.reply)
            }
            weft_policy_sdk::Verdict::WouldDrop(reason) => Verdict::WouldDrop(reason),
        };
        let again = flow.asks_again();
        Ok(Outcome { verdict, slot: self.answer.slot.as_ref(), again })
    }
}
