//! Who may call what.

use time::OffsetDateTime;
use tonic::{Request, Status};
use weft_control::{PeerIdentity, Role, peer_identity};
use weft_model::NodeName;

use crate::fabric::Fabric;

/// The certificate behind a request, if it is still good.
fn certificate<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = peer_identity(request).map_err(|e| Status::unauthenticated(e.to_string()))?;
    let Some(peer) = peer else {
        return Err(Status::unauthenticated(
            "this call needs a client certificate: a node gets one by joining, an operator by \
             `weft token admin`",
        ));
    };
    // TLS looked when the connection was made; that may be long ago.
    if peer.expires_unix <= OffsetDateTime::now_utc().unix_timestamp() {
        return Err(expired());
    }
    Ok(peer)
}

/// The node that calls, and when its certificate expires in Unix seconds.
pub(super) fn node<T>(fabric: &Fabric, request: &Request<T>) -> Result<(NodeName, i64), Status> {
    let peer = certificate(request)?;
    match fabric.member(&peer)? {
        Some(name) => Ok((name, peer.expires_unix)),
        None => Err(Status::permission_denied("this call is for nodes, not for operators")),
    }
}

/// Lets operators pass.
pub(super) fn admin<T>(request: &Request<T>) -> Result<(), Status> {
    match certificate(request)?.role {
        Role::Admin(_) => Ok(()),
        Role::Node(_) => Err(Status::permission_denied(
            "this call is for operators: use the hub's unix socket, or a certificate of `weft \
             token admin`",
        )),
    }
}

/// What a caller with an expired certificate is told.
pub(super) fn expired() -> Status {
    Status::unauthenticated("the client certificate has expired: renew it, or join again")
}
