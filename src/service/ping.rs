//! The shortest question: are you there, and what do you speak?
//!
//! Limit: one of its sender's bucket, and 64 bytes.

use std::time::Duration;

use futures::FutureExt;

use super::{Handler, Method, Service, Unanswered};
use crate::model::id::PeerId;
use crate::wire::agent::{self, Agent};
use crate::wire::service::kind;

/// Bytes of the largest body that is taken: none of them is read.
const MOST: usize = 64;

/// Answers with the line that says what this program is and speaks.
pub fn method() -> Method<Handler> {
    let handler: Handler = Box::new(|_| async { Ok(agent::text().into_bytes()) }.boxed());
    Method {
        name: "ping",
        cost: 1,
        most: MOST,
        handler,
    }
}

/// Asks a member. Gives what it says of itself; `None` where that is no line of byway's.
///
/// # Errors
/// [`Unanswered`].
pub async fn ping(
    service: &Service,
    peer: PeerId,
    timeout: Duration,
) -> Result<Option<Agent>, Unanswered> {
    let answer = service
        .ask(peer, kind::PING, None, Vec::new(), timeout)
        .await?;
    Ok(std::str::from_utf8(&answer).ok().and_then(Agent::parse))
}
