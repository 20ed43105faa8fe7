//! The CNI socket: one request and one response for each connection, each a line of JSON.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use weft_control::KeptSocket;
use weft_model::cni::{Request, Response};

use super::attachments::{Attachments, Failure, Ports, code};
use super::records::Record;

/// Longest request in bytes; most have a few hundred, one that lists every attachment of a node more.
const REQUEST_MAX: u64 = 1 << 20;
/// How long a client may take to send its request, and to take the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves for ever; a connection that misbehaves hurts itself only.
pub(crate) async fn serve<P: Ports>(mut socket: KeptSocket, attachments: Arc<Attachments<P>>) {
    loop {
        let stream = socket.accept().await;
        let attachments = attachments.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &attachments).await {
                tracing::debug!(%error, "connection to the CNI socket ended early");
            }
        });
    }
}

async fn answer<P: Ports>(stream: UnixStream, attachments: &Attachments<P>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_MAX));
    timeout(CLIENT_TIMEOUT, reader.read_until(b'\n', &mut line)).await??;
    let response = match serde_json::from_slice(&line) {
        Ok(request) => handle(request, attachments).await,
        Err(error) => {
            Failure::new(code::DECODE, format!("the request cannot be understood: {error}")).into()
        }
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    timeout(CLIENT_TIMEOUT, writer.write_all(&bytes)).await?
}

async fn handle<P: Ports>(request: Request, attachments: &Attachments<P>) -> Response {
    let done = match request {
        Request::Prepare { attachment } => {
            return match attachments.prepare(&attachment).await {
                Ok(delegation) => Response::Prepared(delegation),
                Err(failure) => failure.into(),
            };
        }
        Request::Attach { attachment, pod, wiring } => {
            attachments.attach(Record { attachment, pod, wiring }).await
        }
        Request::Detach { attachment } => attachments.detach(&attachment).await,
        Request::Check { attachment, wiring } => attachments.check(&attachment, &wiring).await,
        Request::Status { network } => attachments.status(&network),
        Request::Collect { network, valid } => attachments.collect(&network, &valid).await,
    };
    match done {
        Ok(()) => Response::Done,
        Err(failure) => failure.into(),
    }
}
