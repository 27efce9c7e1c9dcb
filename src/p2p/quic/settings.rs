//! TLS, windows, timers and congestion control of every connection.

use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::NoKeyLog;
use quinn::rustls::client::Resumption;
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, NoneTokenStore, ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::InvalidCid;

use super::super::transport::STREAMS;
use super::super::{Error, Timing};
use crate::udp::quic::{CID, Cids, NONCE, VERSION};

/// Whether BBR rather than Cubic. Cubic: quinn marks its BBR experimental, and over loopback it moved 1.6-3.4 Gbit/s where
/// Cubic moved 3.2-5.2. Where a path loses packets without being full the sealed datagrams carry the traffic, not this.
const BBR: bool = false;
/// Bytes of one connection under way in each direction: 1.3 Gbit/s at 100 ms.
const WINDOW: u32 = 16 << 20;
/// Bytes of one stream that its reader has not taken: what is left of [`WINDOW`] belongs to the other streams.
const STREAM_WINDOW: u32 = 12 << 20;
/// How much later than the pings QUIC sends something of its own to be answered, and how much later than they say so it
/// holds a connection for dead. Pings come sooner than that, of a connection that rests, too: they tell much sooner whether
/// one in use is dead.
const LATER: Duration = Duration::from_secs(5);
/// Payload of the first packets: the least that QUIC demands of a path. MTU discovery raises it.
const FIRST_MTU: u16 = 1200;
/// First packets that wait to be looked at.
const WAITING: usize = 256;
/// Bytes kept of a client whose first packet waits, and of all of them.
const WAITING_BYTES: (u64, u64) = (8 << 10, 1 << 20);

/// What endpoints and connections are made of.
pub(super) struct Settings {
    pub(super) endpoint: EndpointConfig,
    pub(super) server: ServerConfig,
    pub(super) client: ClientConfig,
}

/// # Errors
/// [`Error::Identity`] when the identity makes no certificate.
pub(super) fn settings(key: &Keypair, timing: &Timing) -> Result<Settings, Error> {
    let transport = Arc::new(transport(timing));
    let mut client_tls =
        libp2p_tls::make_client_config(key, None).map_err(|e| Error::Identity(e.to_string()))?;
    // All peers have one name, so a ticket of one would be shown to the next. Every handshake proves both keys anew.
    client_tls.resumption = Resumption::disabled();
    client_tls.enable_sni = false;
    // libp2p writes secrets to $SSLKEYLOGFILE.
    client_tls.key_log = Arc::new(NoKeyLog {});
    let client_tls =
        QuicClientConfig::try_from(client_tls).map_err(|e| Error::Identity(e.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(client_tls));
    client
        .transport_config(transport.clone())
        .token_store(Arc::new(NoneTokenStore))
        .version(VERSION);

    let mut server_tls =
        libp2p_tls::make_server_config(key).map_err(|e| Error::Identity(e.to_string()))?;
    server_tls.send_tls13_tickets = 0;
    server_tls.key_log = Arc::new(NoKeyLog {});
    let server_tls =
        QuicServerConfig::try_from(server_tls).map_err(|e| Error::Identity(e.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(server_tls));
    server
        .transport_config(transport)
        .migration(true)
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES.0)
        .incoming_buffer_size_total(WAITING_BYTES.1);

    let mut endpoint = EndpointConfig::default();
    endpoint
        .grease_quic_bit(false)
        .supported_versions(vec![VERSION]);
    Ok(Settings {
        endpoint,
        server,
        client,
    })
}

fn transport(timing: &Timing) -> TransportConfig {
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = if BBR {
        Arc::new(BbrConfig::default())
    } else {
        Arc::new(CubicConfig::default())
    };
    let idle_ms = u32::try_from((timing.dead + LATER).as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(u32::try_from(STREAMS).unwrap_or(64)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .keep_alive_interval(Some(timing.rest + LATER))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .initial_mtu(FIRST_MTU)
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .allow_spin(false)
        .congestion_controller_factory(congestion);
    transport
}

/// Gives the connections of an endpoint the IDs of its socket, which tells by them what belongs to a connection.
pub(super) fn name_connections(endpoint: &mut EndpointConfig, cids: Cids) {
    endpoint.cid_generator(move || {
        Box::new(Silent {
            cids: cids.clone(),
            drawn: 0,
        })
    });
}

/// Connection IDs of which none is ever recognised by quinn without its connection.
///
/// That is what keeps it from sending stateless resets: it sends one only to IDs that the generator calls its own. A
/// peer of a daemon that was killed learns of it by its idle timeout.
struct Silent {
    cids: Cids,
    /// How many were made: without random bytes they are different all the same.
    drawn: u32,
}

impl ConnectionIdGenerator for Silent {
    fn generate_cid(&mut self) -> ConnectionId {
        self.drawn = self.drawn.wrapping_add(1);
        let nonce: [u8; NONCE] = getrandom::u32().unwrap_or(self.drawn).to_ne_bytes();
        ConnectionId::new(&self.cids.make(nonce))
    }

    fn validate(&self, _: &ConnectionId) -> Result<(), InvalidCid> {
        Err(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
