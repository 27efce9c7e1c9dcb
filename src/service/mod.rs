//! What other peers ask of this node, and what it asks them: one file or room for each protocol.
//!
//! | what | over | limit |
//! |---|---|---|
//! | [`requests`]: what members ask each other beside records and sessions | `/byway/service/1` | a bucket for each peer, bounds on what runs ([`Inflight`](requests::inflight::Inflight)) |
//! | [`ping`]: are you there, and what do you speak? | one kind of those | theirs |

pub mod ping;
pub mod requests;

pub use self::requests::{Call, Handler, KindTaken, Method, Respond, Router, Service, ServiceCounts, Unanswered};
