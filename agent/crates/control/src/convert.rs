//! Between the messages of `proto/` and the types of `model`. What comes in is checked here once;
//! inside, types are valid.

mod dns;
mod fabric;
mod policy;
mod service;
mod update;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use weft_model::{IdError, MacAddr, PublicKey};

pub use update::{Update, UpdateBody};

/// Makes the message. Never fails.
pub trait ToProto {
    /// The generated type.
    type Proto;

    /// The message.
    fn to_proto(&self) -> Self::Proto;
}

/// Reads and checks a message.
pub trait FromProto<P>: Sized {
    /// Reads and checks a message.
    ///
    /// # Errors
    /// [`ConvertError`] names the field and what is wrong with it.
    fn from_proto(message: P) -> Result<Self, ConvertError>;
}

/// A message that cannot be what it claims to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("field `{field}`: {reason}")]
pub struct ConvertError {
    /// Path of the field, as `nodes[2].endpoint`.
    pub field: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Reason {
    /// It has to be there.
    #[error("is missing")]
    Missing,
    /// No IP address.
    #[error("`{0}` is no IP address")]
    Address(String),
    /// No subnet in CIDR form.
    #[error("`{0}` is no subnet in CIDR form")]
    Subnet(String),
    /// No socket address.
    #[error("`{0}` is no ADDRESS:PORT")]
    Endpoint(String),
    /// Another length than 32 bytes.
    #[error("has {0} bytes, 32 are needed")]
    Length(usize),
    /// A number that no name belongs to.
    #[error("{0} is no known value; is the other side of a later version?")]
    Enumeration(i32),
    /// Outside its range.
    #[error("{0} is outside the range of this field")]
    Range(u64),
    /// More or fewer entries than there should be.
    #[error("has {0} entries, which is not one for each of what they belong to")]
    Count(u64),
    /// No legal name or number.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Neither a name of a host nor a wildcard.
    #[error("`{0}` is no name of a host")]
    Domain(String),
    /// Two of one name.
    #[error("`{0}` occurs twice")]
    Duplicate(String),
}

impl ConvertError {
    /// `reason` at `field`.
    pub fn new(field: &str, reason: impl Into<Reason>) -> Self {
        Self { field: field.to_owned(), reason: reason.into() }
    }

    /// The same error seen from the message around: `outer.field`.
    #[must_use]
    pub fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), ..self }
    }
}

impl From<ConvertError> for tonic::Status {
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Converts each of `items`; an error tells which.
pub(crate) fn each<P, T>(
    field: &str,
    items: Vec<P>,
    mut one: impl FnMut(P) -> Result<T, ConvertError>,
) -> Result<Vec<T>, ConvertError> {
    let numbered = items.into_iter().enumerate();
    numbered.map(|(i, item)| one(item).map_err(|e| e.within(&format!("{field}[{i}]")))).collect()
}

fn each_text<T>(
    field: &str,
    items: &[String],
    reason: impl Fn(&str) -> Reason,
) -> Result<Vec<T>, ConvertError>
where
    T: std::str::FromStr,
{
    let parse = |(i, text): (usize, &String)| {
        text.parse().map_err(|_| ConvertError::new(&format!("{field}[{i}]"), reason(text)))
    };
    items.iter().enumerate().map(parse).collect()
}

/// Reads a list of IP addresses.
///
/// # Errors
/// [`Reason::Address`].
pub fn addresses(field: &str, items: &[String]) -> Result<Vec<IpAddr>, ConvertError> {
    each_text(field, items, |t| Reason::Address(t.to_owned()))
}

/// Reads a list of subnets; host bits must be zero.
///
/// # Errors
/// [`Reason::Subnet`].
pub fn subnets(field: &str, items: &[String]) -> Result<Vec<IpNet>, ConvertError> {
    let subnets: Vec<IpNet> = each_text(field, items, |t| Reason::Subnet(t.to_owned()))?;
    match subnets.iter().position(|s| s.trunc() != *s) {
        Some(i) => {
            let text = items.get(i).cloned().unwrap_or_default();
            Err(ConvertError::new(&format!("{field}[{i}]"), Reason::Subnet(text)))
        }
        None => Ok(subnets),
    }
}

/// Reads a socket address; empty text is none.
///
/// # Errors
/// [`Reason::Endpoint`].
pub fn endpoint(field: &str, text: &str) -> Result<Option<SocketAddr>, ConvertError> {
    let parse = |_| ConvertError::new(field, Reason::Endpoint(text.to_owned()));
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(parse) }
}

/// Reads WireGuard public keys.
///
/// # Errors
/// [`Reason::Length`].
pub fn keys(field: &str, items: Vec<Vec<u8>>) -> Result<Vec<PublicKey>, ConvertError> {
    let numbered = items.into_iter().enumerate();
    numbered.map(|(i, key)| bytes32(&format!("{field}[{i}]"), key).map(PublicKey)).collect()
}

/// Reads 32 bytes: a key or a digest.
///
/// # Errors
/// [`Reason::Length`].
pub fn bytes32(field: &str, bytes: Vec<u8>) -> Result<[u8; 32], ConvertError> {
    bytes.try_into().map_err(|b: Vec<u8>| ConvertError::new(field, Reason::Length(b.len())))
}

/// Reads a MAC address; empty text is none.
///
/// # Errors
/// [`Reason::Id`].
pub fn mac(field: &str, text: &str) -> Result<Option<MacAddr>, ConvertError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: IdError| ConvertError::new(field, e))
}

/// Reads a number that the model holds in fewer bits.
///
/// # Errors
/// [`Reason::Range`].
pub fn narrow<T: TryFrom<u32>>(field: &str, value: u32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| ConvertError::new(field, Reason::Range(value.into())))
}

/// Writes a list as text.
pub fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}
