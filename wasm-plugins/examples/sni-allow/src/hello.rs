//! The server name in a TLS ClientHello. Source: RFC 8446 section 4.1.2, RFC 6066 section 3.

/// Longest ClientHello that is read, record headers included, in bytes. With post-quantum key
/// shares and a session ticket they have about two thousand.
pub(crate) const HELLO_MAX: usize = 4096;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the start of a stream is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// A ClientHello as far as it goes.
    Incomplete,
    /// One for this server.
    Name(String),
    /// One that names no server.
    NoName,
    /// Something else.
    NotTls,
    /// A ClientHello that breaks its own lengths.
    Malformed,
    /// One longer than [`HELLO_MAX`].
    TooLong,
}

/// Reads the start of a stream.
pub(crate) fn read_hello(stream: &[u8]) -> Hello {
    let message = match handshake(stream) {
        Ok(message) => message,
        Err(instead) => return instead,
    };
    let mut reader = Reader(&message);
    match reader.u8() {
        None => return incomplete(stream),
        Some(CLIENT_HELLO) => {}
        Some(_) => return Hello::NotTls,
    }
    let Some(length) = reader.u24() else { return incomplete(stream) };
    if length > HELLO_MAX {
        return Hello::TooLong;
    }
    match reader.take(length) {
        Some(body) => server_name(body).unwrap_or(Hello::Malformed),
        None => incomplete(stream),
    }
}

fn incomplete(stream: &[u8]) -> Hello {
    if stream.len() >= HELLO_MAX { Hello::TooLong } else { Hello::Incomplete }
}

/// Joins the handshake bytes of the records, which may split a message anywhere.
fn handshake(stream: &[u8]) -> Result<Vec<u8>, Hello> {
    let mut message = Vec::with_capacity(stream.len());
    let mut reader = Reader(stream);
    while let Some(kind) = reader.u8() {
        // After the ClientHello come other records.
        if kind != HANDSHAKE_RECORD {
            return if message.is_empty() { Err(Hello::NotTls) } else { Ok(message) };
        }
        let Some(version) = reader.u16() else { break };
        if version >> 8 != 3 {
            return Err(Hello::NotTls);
        }
        let Some(length) = reader.u16() else { break };
        let body = reader.take_up_to(usize::from(length));
        message.extend_from_slice(body);
    }
    Ok(message)
}

/// `None` if it is malformed.
fn server_name(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session = usize::from(reader.u8()?);
    reader.take(session)?;
    let ciphers = usize::from(reader.u16()?);
    reader.take(ciphers)?;
    let compressions = usize::from(reader.u8()?);
    reader.take(compressions)?;
    if reader.0.is_empty() {
        return Some(Hello::NoName);
    }
    let length = usize::from(reader.u16()?);
    let mut extensions = Reader(reader.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let content = extensions.take(length)?;
        if kind == SERVER_NAME {
            return host_name(content);
        }
    }
    Some(Hello::NoName)
}

fn host_name(extension: &[u8]) -> Option<Hello> {
    let mut reader = Reader(extension);
    let length = usize::from(reader.u16()?);
    let mut names = Reader(reader.take(length)?);
    let kind = names.u8()?;
    let length = usize::from(names.u16()?);
    let name = std::str::from_utf8(names.take(length)?).ok()?;
    (kind == HOST_NAME && name.is_ascii()).then(|| Hello::Name(name.to_owned()))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn take_up_to(&mut self, len: usize) -> &'a [u8] {
        self.take(len.min(self.0.len())).unwrap_or_default()
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u24(&mut self) -> Option<usize> {
        let [a, b, c] = *self.take(3)?.first_chunk::<3>()?;
        usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()
    }
}
