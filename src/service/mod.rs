//! What other peers ask of this node, and what it asks them: one file or room for each protocol.
//!
//! `dispatch` gives each event of [`p2p`](crate::p2p) to the protocol it belongs to. `Mesh` is what the protocols use: the
//! node, which alone decides, the handles that carry, and what each protocol remembers.
//!
//! | what | over | limit |
//! |---|---|---|
//! | `join`: this node's own joins, and strangers' | `/byway/join/1`, passed on in control | a rate for each source, one for each member that passes on |
//! | `records`: what is held of each subnet is the same everywhere | `/byway/control/1` | records for each member, by a bucket; a push in pieces; two comparisons with each |
//! | `sessions`: the messages of datagram sessions, and where each end may be reached | `/byway/control/1` | their places in the inbox |
//! | `relay`: sealed datagrams forwarded by a third peer | `/byway/relay/1`, and calls in control | sessions and a rate for each peer and each address of strangers; buckets for questions and for calls |
//! | [`requests`]: what members ask each other beside these | `/byway/service/1` | a bucket for each peer, bounds on what runs ([`Inflight`](requests::inflight::Inflight)) |
//! | `clock`: whether this machine's clock can be believed | one kind of those | one question at a time to each member |
//! | `measure`: how much a carrier moves | one kind of those, and fillers on the carrier | bytes for each member, by a bucket; one of our own at a time |
//! | [`ping`]: are you there, and what do you speak? | one kind of those | theirs |
//!
//! `portmap` asks no peer: it has the router lead its ports here, and tells peers of them. `external` asks those whom the
//! configuration names where this machine is seen from outside.
//!
//! `inbox` bounds what a member has waiting, of control and requests together. `settings` tells the peers' task what the
//! configuration says of relays and of denied addresses.

pub(crate) mod attend;
pub(crate) mod clock;
pub(crate) mod dispatch;
pub(crate) mod external;
mod inbox;
pub(crate) mod join;
pub(crate) mod lan;
pub(crate) mod measure;
mod mesh;
pub mod ping;
pub(crate) mod portmap;
pub(crate) mod presence;
pub(crate) mod records;
pub(crate) mod relay;
pub mod requests;
pub(crate) mod sessions;
pub(crate) mod settings;
mod table;
pub(crate) mod traffic;
pub(crate) mod versions;

pub(crate) use self::mesh::{Mesh, Parts};
pub(crate) use self::relay::offers::{Known, OfRecords};
pub use self::requests::{
    Call, Handler, KindTaken, Method, Respond, Router, Service, ServiceCounts, Unanswered,
};
