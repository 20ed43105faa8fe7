//! Channels to the parts of Weft. Both kinds reconnect by themselves when a call finds them broken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};
use tower::service_fn;

use crate::text::innermost;
use crate::tls::{HUB_SERVER_NAME, TlsIdentity};

/// How long a connection may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection to the hub is probed this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A probe without answer for this long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection; each is one line that says what to look at.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `addr` is no HOST:PORT.
    #[error("`{0}` is no address of a hub: HOST:PORT expected, for example hub.example:7443")]
    Address(String),
    /// CA or identity cannot be used.
    #[error("certificate or key for the hub cannot be used ({}): join again with a fresh token", innermost(.0))]
    Tls(#[source] tonic::transport::Error),
    /// No connection to the hub.
    #[error("no connection to the hub at {addr} ({}): is it running, is the port open, is the token or certificate of this hub?", innermost(.source))]
    Hub {
        /// Where.
        addr: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// No connection to a unix socket.
    #[error("no connection to {} ({}): is the process that serves it running, and are you root?", .path.display(), innermost(.source))]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to a service on a unix socket.
///
/// # Errors
/// [`ConnectError::Unix`] if nobody listens there or it may not be opened.
pub async fn connect_unix(path: impl AsRef<Path>) -> Result<Channel, ConnectError> {
    let path = path.as_ref().to_owned();
    // The URI is never resolved; gRPC wants one for its `:authority`.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT);
    let target = path.clone();
    let connector = service_fn(move |_: Uri| {
        let target = target.clone();
        async move { UnixStream::connect(target).await.map(TokioIo::new) }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|source| ConnectError::Unix { path, source })
}

/// Connects to the hub at `addr` (HOST:PORT), trusting `ca` (PEM) only, as `identity` if there is
/// one. The name in the hub's certificate is always [`HUB_SERVER_NAME`].
///
/// A client certificate that the hub refuses shows in the first call, not here: TLS 1.3 is done
/// for the client before the server has looked at it.
///
/// # Errors
/// [`ConnectError`] if the address, the certificates or the connection are no good.
pub async fn connect_hub(
    addr: &str,
    ca: &str,
    identity: Option<&TlsIdentity>,
) -> Result<Channel, ConnectError> {
    let bad = || ConnectError::Address(addr.to_owned());
    let uri: Uri = format!("https://{addr}").parse().map_err(|_| bad())?;
    if uri.port().is_none() || uri.path() != "/" {
        return Err(bad());
    }
    let mut tls = ClientTlsConfig::new()
        .domain_name(HUB_SERVER_NAME)
        .ca_certificate(Certificate::from_pem(ca));
    if let Some(identity) = identity {
        tls = tls.identity(identity.to_tonic());
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tls_config(tls)
        .map_err(ConnectError::Tls)?;
    let connected = endpoint.connect().await;
    connected.map_err(|source| ConnectError::Hub { addr: addr.to_owned(), source })
}
