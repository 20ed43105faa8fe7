//! Whose ServiceAccount token it is that a node shows.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use weft_model::NodeName;

/// Who tokens of agents are for: a token for another audience, stolen or borrowed, admits nobody.
pub const TOKEN_AUDIENCE: &str = "weft-hub";

/// What API servers say of a token beside its user. Source: KEP-4193, in every release since 1.32.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// How long the API server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Tokens that it is asked about at once.
const REVIEWS_MAX: usize = 16;

/// The node that a token was issued on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeIdentity {
    pub(crate) name: NodeName,
    /// Of its Node object.
    pub(crate) uid: String,
}

/// Why a token admits nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReviewError {
    /// Asking again may help.
    #[error("the API server cannot be asked whose token this is: {0}")]
    Away(#[source] Box<kube::Error>),
    #[error("the API server does not say in time whose token this is")]
    Silent,
    #[error("the API server does not know this token: {0}")]
    Unknown(String),
    #[error("this is a token of {given}, not of {expected}")]
    User { given: String, expected: String },
    #[error(
        "this token is bound to no node: mount one into the agent's pod (a projected volume, audience {TOKEN_AUDIENCE}); Kubernetes says whose it is from 1.32 on"
    )]
    Unbound,
}

/// Asks the API server.
pub(crate) struct Reviewer {
    client: Client,
    /// The only user that tokens may be of.
    user: String,
    turns: Semaphore,
}

impl Reviewer {
    /// `account`: namespace and name of the agents' ServiceAccount.
    pub(crate) fn new(client: Client, (namespace, name): (&str, &str)) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Self { client, user, turns: Semaphore::new(REVIEWS_MAX) }
    }

    /// Tells a ServiceAccount's token from a join token's secret.
    pub(crate) fn is_for(token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// The node of the pod that the token was issued to.
    pub(crate) async fn review(&self, token: &str) -> Result<NodeIdentity, ReviewError> {
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
        };
        let asked = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        // Whoever reaches the port may ask: not more at once than the API server takes without noticing.
        let Ok(_turn) = self.turns.acquire().await else { return Err(ReviewError::Silent) };
        let asking = PostParams::default();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, api.create(&asking, &asked)).await;
        let answer = answer.map_err(|_| ReviewError::Silent)?;
        self.identity(answer.map_err(|error| ReviewError::Away(Box::new(error)))?)
    }

    fn identity(&self, review: TokenReview) -> Result<NodeIdentity, ReviewError> {
        let status = review.status.unwrap_or_default();
        let is_for_us =
            status.audiences.is_some_and(|all| all.iter().any(|one| one == TOKEN_AUDIENCE));
        if !status.authenticated.unwrap_or(false) || !is_for_us {
            let why = status.error.unwrap_or_else(|| "it is for others, or has expired".to_owned());
            return Err(ReviewError::Unknown(why));
        }
        let user = status.user.unwrap_or_default();
        let given = user.username.unwrap_or_default();
        if given != self.user {
            return Err(ReviewError::User { given, expected: self.user.clone() });
        }
        let extra = user.extra.unwrap_or_default();
        let one = |key: &str| extra.get(key).and_then(|all| all.first()).cloned();
        let name = one(NODE_NAME).and_then(|name| NodeName::try_new(name).ok());
        name.zip(one(NODE_UID))
            .map(|(name, uid)| NodeIdentity { name, uid })
            .ok_or(ReviewError::Unbound)
    }
}

impl From<ReviewError> for tonic::Status {
    fn from(error: ReviewError) -> Self {
        let text = error.to_string();
        match error {
            ReviewError::Away(_) | ReviewError::Silent => Self::unavailable(text),
            ReviewError::Unknown(_) | ReviewError::User { .. } | ReviewError::Unbound => {
                Self::unauthenticated(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

    use super::*;

    fn reviewed(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<NodeIdentity, ReviewError> {
        let extra = [(NODE_NAME, "node-1"), (NODE_UID, "u-1")];
        let extra: BTreeMap<_, _> =
            extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into();
        let username = Some("system:serviceaccount:weft-system:weft-agent".to_owned());
        let user = UserInfo { username, extra: Some(extra), ..UserInfo::default() };
        let mut status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            user: Some(user),
            error: None,
        };
        change(&mut status);
        let config = kube::Config::new("https://192.0.2.1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let reviewer = Reviewer::new(client, ("weft-system", "weft-agent"));
        reviewer.identity(TokenReview { status: Some(status), ..TokenReview::default() })
    }

    #[tokio::test]
    async fn token_tells_the_node_of_its_pod() {
        let node = reviewed(|_| {}).unwrap();
        assert_eq!((node.name.as_str(), node.uid.as_str()), ("node-1", "u-1"));
    }

    #[tokio::test]
    async fn token_of_somebody_else_admits_nobody() {
        let error = reviewed(|s| s.authenticated = Some(false)).unwrap_err();
        assert!(matches!(error, ReviewError::Unknown(_)), "{error}");
        // An API server that knows nothing of audiences names none.
        for audiences in [None, Some(vec![]), Some(vec!["https://kubernetes".to_owned()])] {
            let error = reviewed(|s| s.audiences = audiences).unwrap_err();
            assert!(matches!(error, ReviewError::Unknown(_)), "{error}");
        }
        let other = |s: &mut TokenReviewStatus| {
            s.user.as_mut().unwrap().username =
                Some("system:serviceaccount:default:weft-agent".to_owned());
        };
        let error = reviewed(other).unwrap_err();
        assert!(matches!(error, ReviewError::User { .. }), "{error}");
        let error = reviewed(|s| s.user.as_mut().unwrap().extra = None).unwrap_err();
        assert!(matches!(error, ReviewError::Unbound), "{error}");
    }
}
