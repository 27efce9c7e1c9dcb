//! The request handler: what hickory-server calls with a decoded request, and where its answer goes.
//!
//! Owns nothing but pointers to what is served. [`answer`] is the way from bytes to bytes that UDP, TCP and
//! [`Dns::query`](super::Dns::query) share; the handler itself would work in hickory's own `Server` too, for it makes its
//! replies fit before it hands them on.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::{Time, TokioTime};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};
use parking_lot::Mutex;

use super::counters::count;
use super::listen::Shared;
use super::question::{Decision, Glance, Reply, Served, glance, malformed};

/// Answers the requests at the sockets of one subnet.
pub(super) struct Handler {
    served: Arc<ArcSwap<Served>>,
    shared: Arc<Shared>,
}

impl Handler {
    pub(super) fn new(served: Arc<ArcSwap<Served>>, shared: Arc<Shared>) -> Handler {
        Handler { served, shared }
    }

    pub(super) fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn decide(&self, served: &Served, request: &Request) -> Decision {
        let trial = self.shared.trial.load();
        let tried = trial.as_ref().and_then(|t| t.reply(served, request));
        tried.map_or_else(|| served.decide(request), Decision::Answer)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    /// Answers from the zone without waiting for anything; only what goes to the host's resolvers waits, and that holds
    /// one of the places [in flight](super::IN_FLIGHT).
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        outbox: R,
    ) -> ResponseInfo {
        let served = self.served();
        let counters = &self.shared.counters;
        let mut reply = match self.decide(&served, request) {
            Decision::Answer(reply) => {
                count(&counters.answered);
                reply
            }
            Decision::Refuse(reply) => {
                count(&counters.refused);
                reply
            }
            Decision::Foreign => {
                count(&counters.foreign);
                return not_sent(request, ResponseCode::Refused);
            }
            Decision::Forward(forward) => self.shared.upstream.resolve(*forward).await,
        };
        reply.fit(&request.queries);
        send(reply, request, outbox).await
    }
}

/// Hands a reply that [fits](Reply::fit) to `outbox`.
pub(super) async fn send<R: ResponseHandler>(
    reply: Reply,
    request: &Request,
    mut outbox: R,
) -> ResponseInfo {
    let response = MessageResponseBuilder::new(&request.queries, reply.edns.as_ref()).build(
        reply.metadata,
        &reply.answers,
        &reply.authorities,
        [],
        &reply.additionals,
    );
    match outbox.send_response(response).await {
        Ok(info) => info,
        Err(error) => {
            tracing::debug!(%error, "encode a DNS answer");
            not_sent(request, ResponseCode::ServFail)
        }
    }
}

/// What hickory wants to hear of a request that got no answer.
fn not_sent(request: &Request, code: ResponseCode) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = code;
    Header {
        metadata,
        counts: HeaderCounts::default(),
    }
    .into()
}

/// Keeps the one reply of one request; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Option<Vec<u8>>>>);

impl Outbox {
    /// The reply, if there was one.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().take()
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Outbox {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        *self.0.lock() = Some(bytes);
        Ok(info)
    }
}

/// What is sent back for the message `raw`; nothing where silence is the answer.
///
/// The first poll ends it unless the host's resolvers are asked.
///
/// # Cancel safety
/// Dropping the future gives the place among those in flight back.
pub(super) async fn answer(
    handler: Arc<Handler>,
    raw: Vec<u8>,
    source: SocketAddr,
    protocol: Protocol,
) -> Option<Vec<u8>> {
    let counters = &handler.shared.counters;
    match glance(&raw) {
        Glance::Question => {}
        Glance::Refuse(reply) => {
            count(&counters.refused);
            return Some(reply);
        }
        Glance::Malformed(reply) => {
            count(&counters.malformed);
            return Some(reply);
        }
        Glance::Drop => {
            count(&counters.malformed);
            return None;
        }
    }
    let error = malformed(&raw);
    let Ok(request) = Request::from_bytes(raw, source, protocol) else {
        count(&counters.malformed);
        return Some(error);
    };
    let outbox = Outbox::default();
    handler
        .handle_request::<_, TokioTime>(&request, outbox.clone())
        .await;
    outbox.take()
}
