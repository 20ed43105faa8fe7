//! What a pod would find in the end (autopath): its resolver makes several names of a short one, and asks
//! for one after the other.

use std::net::IpAddr;

use domain::base::Rtype;
use domain::base::iana::Rcode;

use crate::answer::{Answer, Data, Record, Resolution, below, resolve};
use crate::name::LowerName;
use crate::service::OwnedName;
use crate::tables::Tables;

/// Goes on where the first name that a pod's search list makes, in the pod's own namespace, is not there:
/// in `svc.ZONE`, in `ZONE`, and as it is. `None` if this is no such name, or nothing of it is there.
pub(crate) fn go_on(
    tables: &Tables,
    name: &LowerName,
    rtype: Rtype,
    client: IpAddr,
) -> Option<Resolution> {
    if !matches!(rtype, Rtype::A | Rtype::AAAA) {
        return None;
    }
    let namespace = tables.searched_namespace(client)?;
    let (zone, before) = tables.zone(name)?;
    let asked = before.checked_sub(2).filter(|labels| *labels > 0)?;
    if name.wire(asked, before) != [namespace, b"\x03svc"].concat() {
        return None;
    }
    let asked = name.wire(0, asked);
    let root = OwnedName::root_vec();
    let parents = [below(b"\x03svc", &zone.name), Some(zone.name.clone()), Some(root)];
    for next in parents.iter().flatten().filter_map(|parent| below(asked, parent)) {
        match resolve(tables, &LowerName::new(&next), rtype) {
            Resolution::Answer(answer) if answer.rcode == Rcode::NXDOMAIN => {}
            Resolution::Answer(answer) => return Some(Resolution::Answer(found(next, answer))),
            Resolution::Follow { names, .. } => {
                let names = std::iter::once(next).chain(names).collect();
                return Some(Resolution::Follow { names, searched: true });
            }
            Resolution::Elsewhere => {
                return Some(Resolution::Follow { names: vec![next], searched: true });
            }
        }
    }
    None
}

/// The name that was asked for becomes an alias of the one that was found.
fn found(name: OwnedName, mut answer: Answer) -> Answer {
    for record in answer.records.iter_mut().filter(|r| r.owner.is_none()) {
        record.owner = Some(name.clone());
    }
    answer.records.insert(0, Record { owner: None, data: Data::Cname(name) });
    answer
}
