//! Services that nodes have nothing but names for: headless ones, names for something else, and those
//! that another proxy serves.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{self as kube, ServiceSpec};
use weft_model::{NamedKind, NamedService, ServiceName, ServicePort};

use super::draft::{Draft, DraftPort, Target, headless, is_headless};
use super::endpoints::Endpoints;
use super::{Allocation, Inputs, Made, families_of, is_ours, name_of, problem};
use crate::dns::is_domain;
use crate::source::index::Defined;
use crate::source::object::{Key, Object};

/// Longest name in characters, without a dot at its end.
const NAME_MAX: usize = 253;

/// Makes those of the Services that `names` has, or all.
pub(super) fn build(
    inputs: &Inputs<'_>,
    allocations: &BTreeMap<ServiceName, Allocation>,
    endpoints: &Endpoints<'_>,
    names: Option<&BTreeSet<ServiceName>>,
) -> BTreeMap<ServiceName, Made> {
    let one = |name: ServiceName, defined: &Defined| {
        let Object::Service(manifest) = &defined.object else { return None };
        let made = make(inputs, allocations, endpoints, &name, defined, manifest)?;
        Some((name, made))
    };
    match names {
        Some(names) => {
            let known =
                |n: &ServiceName| Some((n.clone(), inputs.source.objects.get(&Key::service(n))?));
            names.iter().filter_map(known).filter_map(|(name, d)| one(name, d)).collect()
        }
        None => {
            let all = inputs.source.objects.iter();
            all.filter_map(|(key, defined)| one(name_of(key), defined)).collect()
        }
    }
}

fn make(
    inputs: &Inputs<'_>,
    allocations: &BTreeMap<ServiceName, Allocation>,
    endpoints: &Endpoints<'_>,
    name: &ServiceName,
    defined: &Defined,
    manifest: &kube::Service,
) -> Option<Made> {
    let spec = manifest.spec.as_ref()?;
    let (mut made, mut notes) = (Made::default(), Vec::new());
    if spec.type_.as_deref() == Some("ExternalName") {
        match alias(spec) {
            Ok(target) => {
                let kind = NamedKind::Alias(target);
                let (ports, endpoints) = (Vec::new(), Vec::new());
                made.named = Some(NamedService { name: name.clone(), kind, ports, endpoints });
            }
            Err(note) => notes.push(note),
        }
    } else {
        let kind = if is_headless(spec) {
            NamedKind::Headless
        } else {
            let foreign = allocations.get(name).filter(|_| !is_ours(manifest))?;
            NamedKind::Foreign(foreign.cluster_ips.clone())
        };
        let mut draft = headless(name, defined, manifest, spec, &mut notes);
        endpoints.add_ports_of_slices(&mut draft);
        let endpoints =
            endpoints.with_names(&draft, &families_of(inputs.cluster), &mut made.problems);
        let ports = draft.ports.iter().map(named_port).collect();
        made.named = Some(NamedService { name: name.clone(), kind, ports, endpoints });
    }
    made.problems.extend(notes.iter().map(|note| problem(defined, name, note)));
    Some(made)
}

fn named_port(port: &DraftPort) -> ServicePort {
    let DraftPort { name, protocol, port, .. } = port;
    ServicePort { name: name.clone(), protocol: *protocol, port: *port, node_port: None }
}

/// The name that an ExternalName stands for.
fn alias(spec: &ServiceSpec) -> Result<String, String> {
    let given = spec.external_name.as_deref().unwrap_or_default().trim();
    if !is_domain(given, NAME_MAX) {
        return Err(format!("`spec.externalName`: `{given}` is no DNS name"));
    }
    Ok(given.strip_suffix('.').unwrap_or(given).to_owned())
}

impl Endpoints<'_> {
    /// Adds ports that EndpointSlices name and the Service does not: a headless Service needs none.
    fn add_ports_of_slices(&self, draft: &mut Draft<'_>) {
        for (name, protocol, number) in self.ports_of_slices(&draft.name) {
            let known = |p: &DraftPort| p.name == name && p.protocol == protocol;
            if !draft.ports.iter().any(known) {
                let target = Target::Number(number);
                let name = name.to_owned();
                draft.ports.push(DraftPort {
                    name,
                    protocol,
                    port: number,
                    target,
                    node_port: None,
                });
            }
        }
    }
}
