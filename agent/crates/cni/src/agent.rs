//! One question to the agent, with a time limit.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use weft_model::cni::{Request, Response};

use crate::CniError;
use crate::error::code::TRY_AGAIN;

/// Well under the runtime's own limit, so that the kubelet gets a reason and tries again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
/// Runtimes ask for the status again and again.
const STATUS_TIMEOUT: Duration = Duration::from_millis(800);

/// Asks and returns the answer; [`Response::Failed`] becomes an error of its code.
///
/// # Errors
/// Code 11 if the agent cannot be reached or does not answer in time.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<Response, CniError> {
    let status = matches!(request, Request::Status { .. });
    let limit = if status { STATUS_TIMEOUT } else { ANSWER_TIMEOUT };
    let away = |e: std::io::Error| {
        let message =
            format!("the Weft agent does not answer on {}: is it running?", socket.display());
        CniError::new(TRY_AGAIN, message).details(e.to_string())
    };
    let mut stream = UnixStream::connect(socket).map_err(away)?;
    stream.set_read_timeout(Some(limit)).map_err(away)?;
    stream.set_write_timeout(Some(limit)).map_err(away)?;
    let mut line = serde_json::to_vec(request).map_err(|e| away(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(away)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(away)?;
    match serde_json::from_str(&answer).map_err(|e| away(e.into()))? {
        Response::Failed { code, message } => Err(CniError::new(code, message)),
        done => Ok(done),
    }
}
