//! One line for an operator out of what gRPC gives.

use std::error::Error;

use tonic::{Code, Status};

/// The last error of a chain in one line: `transport error` says nothing, what is under it does.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    one_line(&last.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A failed call in one line that says what happened and, where the server's own text cannot know,
/// what to look at.
#[must_use]
pub fn operator_text(status: &Status) -> String {
    let message = match status.source() {
        Some(source) => innermost(source),
        None => one_line(status.message()),
    };
    let message = if message.is_empty() { status.code().description().to_owned() } else { message };
    match hint(status) {
        Some(hint) => format!("{message}: {hint}"),
        None => message,
    }
}

fn hint(status: &Status) -> Option<&'static str> {
    // The transport's own failures carry a source; a server's text already says what to do.
    let transport = status.source().is_some();
    Some(match status.code() {
        Code::Unavailable if transport => "is the other side running and reachable?",
        Code::Unknown | Code::Cancelled if transport => {
            "the connection was refused or broke; is the certificate still valid?"
        }
        Code::DeadlineExceeded => "no answer in time; is the other side overloaded or stopped?",
        Code::Unimplemented => "the other side is of another version of Weft; upgrade it",
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_text_is_kept_in_one_line() {
        let status = Status::resource_exhausted("no subnet left\n  in 10.0.0.0/24");
        assert_eq!(operator_text(&status), "no subnet left in 10.0.0.0/24");
        let status = Status::unimplemented("");
        assert!(operator_text(&status).ends_with("upgrade it"));
    }
}
