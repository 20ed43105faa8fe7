//! What `--port` says.

use std::fmt;

use weft_model::{Pod, ServiceProtocol};
use weft_proto::v1::Ports;

use crate::AskError;

const PORT_NAME_MAX: usize = 15;

/// A port as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Every,
    Number(ServiceProtocol, u16),
    /// Of any protocol if none was given.
    Named(Option<ServiceProtocol>, String),
    /// ICMP, and whatever else has none.
    WithoutPorts,
}

impl Wanted {
    pub(crate) fn read(text: &str) -> Result<Self, AskError> {
        let wrong = || AskError::Port(text.to_owned());
        let (port, protocol) = match text.trim().split_once('/') {
            Some((port, protocol)) => (port, Some(protocol_of(protocol).ok_or_else(wrong)?)),
            None => (text.trim(), None),
        };
        if port.is_empty() && protocol.is_none() {
            return Ok(Self::Every);
        }
        if port.eq_ignore_ascii_case("icmp") && protocol.is_none() {
            return Ok(Self::WithoutPorts);
        }
        if port.bytes().all(|b| b.is_ascii_digit()) {
            let number = port.parse().ok().filter(|n| *n != 0).ok_or_else(wrong)?;
            return Ok(Self::Number(protocol.unwrap_or(ServiceProtocol::Tcp), number));
        }
        let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        // As Kubernetes names ports: with a letter, and no `-` at an end.
        let named = port.len() <= PORT_NAME_MAX
            && port.bytes().all(of_name)
            && port.bytes().any(|b| b.is_ascii_lowercase())
            && !port.starts_with('-')
            && !port.ends_with('-');
        if !named {
            return Err(wrong());
        }
        Ok(Self::Named(protocol, port.to_owned()))
    }

    /// What to ask about where `pod` is the target; `None`: every port.
    pub(crate) fn at(&self, pod: Option<&Pod>, to: &str) -> Result<Vec<Option<Ports>>, AskError> {
        Ok(match self {
            Self::Every => vec![None],
            Self::Number(protocol, number) => vec![Some(one(*protocol, *number))],
            Self::WithoutPorts => vec![Some(Ports::default())],
            Self::Named(protocol, name) => {
                let ports = pod.map(|pod| pod.ports.as_slice()).unwrap_or_default();
                let fits = |of: ServiceProtocol| protocol.is_none_or(|wanted| wanted == of);
                let same = ports.iter().filter(|p| p.name == *name && fits(p.protocol));
                let found: Vec<_> = same.map(|p| Some(one(p.protocol, p.number))).collect();
                if found.is_empty() {
                    return Err(AskError::NoNamedPort { to: to.to_owned(), name: name.clone() });
                }
                found
            }
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("of any number"),
            Self::Number(protocol, number) => write!(f, "{number}/{protocol}"),
            Self::Named(None, name) => write!(f, "`{name}`"),
            Self::Named(Some(protocol), name) => write!(f, "`{name}` of {protocol}"),
            Self::WithoutPorts => f.write_str("for ICMP"),
        }
    }
}

pub(crate) fn one(protocol: ServiceProtocol, number: u16) -> Ports {
    let number = u32::from(number);
    Ports { protocol: protocol.number().into(), first: number, last: number }
}

fn protocol_of(text: &str) -> Option<ServiceProtocol> {
    let all = [ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
    all.into_iter().find(|p| p.to_string().eq_ignore_ascii_case(text))
}
