//! IPv6 extension headers. Source: RFC 8200 section 4.

use crate::bytes;
use crate::headers::{Fragment, ParseError};

/// More than any sender needs; a bound on the work for one packet.
const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What follows the extension headers.
pub(crate) struct Chain {
    /// Protocol of the transport header, or of the first header inside a later fragment.
    pub(crate) protocol: u8,
    /// Where it starts.
    pub(crate) offset: usize,
    pub(crate) fragment: Fragment,
    /// Whether the fragment is followed by others.
    pub(crate) more_fragments: bool,
}

/// Follows the headers from `offset`, where one of type `next` starts.
///
/// Authentication headers are not followed: what they protect must not be translated, so to the
/// fabric they are a protocol without ports.
#[inline]
pub(crate) fn walk(packet: &[u8], next: u8, offset: usize) -> Result<Chain, ParseError> {
    let chain = Chain { protocol: next, offset, fragment: Fragment::No, more_fragments: false };
    match next {
        HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | FRAGMENT => follow(packet, chain),
        _ => Ok(chain),
    }
}

fn follow(packet: &[u8], mut chain: Chain) -> Result<Chain, ParseError> {
    for index in 0..=EXTENSIONS_MAX {
        match chain.protocol {
            HOP_BY_HOP if index > 0 => return Err(ParseError::ExtensionOrder),
            HOP_BY_HOP | DESTINATION_OPTIONS => skip(packet, &mut chain)?,
            ROUTING => {
                let segments_left = bytes::u8_at(packet, chain.offset + 3);
                // The checksum would be over an address that the IP header does not have
                // (RFC 8200 section 8.1), and policy would be asked about the wrong one.
                if segments_left.ok_or(ParseError::Truncated)? != 0 {
                    return Err(ParseError::SourceRoute);
                }
                skip(packet, &mut chain)?;
            }
            FRAGMENT => {
                fragment(packet, &mut chain)?;
                if matches!(chain.fragment, Fragment::Later { .. }) {
                    return Ok(chain);
                }
            }
            _ => return Ok(chain),
        }
    }
    Err(ParseError::TooManyExtensions)
}

fn skip(packet: &[u8], chain: &mut Chain) -> Result<(), ParseError> {
    let [next, units] = bytes::array(packet, chain.offset).ok_or(ParseError::Truncated)?;
    let end = chain.offset + (usize::from(units) + 1) * 8;
    if end > packet.len() {
        return Err(ParseError::Truncated);
    }
    chain.protocol = next;
    chain.offset = end;
    Ok(())
}

fn fragment(packet: &[u8], chain: &mut Chain) -> Result<(), ParseError> {
    if chain.fragment != Fragment::No {
        return Err(ParseError::BadFragment);
    }
    let [next, _, high, low, a, b, c, d] =
        bytes::array(packet, chain.offset).ok_or(ParseError::Truncated)?;
    let field = u16::from_be_bytes([high, low]);
    let (offset, id) = (field & 0xfff8, u32::from_be_bytes([a, b, c, d]));
    chain.more_fragments = field & 1 == 1;
    // One that is first and last at once is a whole packet (RFC 6946).
    chain.fragment = match (offset, chain.more_fragments) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First { id },
        (offset, _) => Fragment::Later { id, offset },
    };
    chain.protocol = next;
    chain.offset += 8;
    Ok(())
}
