//! Relays that lie, and strangers who open circuits and say nothing.

use std::io;
use std::sync::Mutex;
use std::time::SystemTime;

use futures::{AsyncRead, AsyncWrite, StreamExt};
use libp2p::core::transport::MemoryTransport;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, Transport as _, identify, noise, ping, swarm, yamux,
};

use super::*;
use crate::p2p::circuits::{circuit_to, kept_until};

/// What is asked of relays, as a protocol of raw messages.
#[derive(Clone, Copy)]
struct Hop;

/// One message behind its length of one or two bytes.
async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut byte = [0];
    io.read_exact(&mut byte).await?;
    let mut length = usize::from(byte[0] & 0x7f);
    if byte[0] & 0x80 != 0 {
        io.read_exact(&mut byte).await?;
        length |= usize::from(byte[0]) << 7;
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(io: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u8::try_from(message.len()).unwrap();
    assert!(length < 0x80);
    io.write_all(&[length]).await?;
    io.write_all(message).await?;
    io.flush().await
}

impl request_response::Codec for Hop {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        message: Vec<u8>,
    ) -> io::Result<()> {
        if !message.is_empty() {
            write(io, &message).await?;
        }
        // A circuit stands then, and nothing is said on it: returning would end it.
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(())
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        message: Vec<u8>,
    ) -> io::Result<()> {
        write(io, &message).await
    }
}

#[derive(NetworkBehaviour)]
struct Hostile {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    hop: request_response::Behaviour<Hop>,
    stop: request_response::Behaviour<Hop>,
}

fn hostile(seed: u8) -> Swarm<Hostile> {
    let key = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
    let transport = MemoryTransport::default()
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(&key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let hop = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
    let config = request_response::Config::default()
        .with_request_timeout(Duration::from_secs(60))
        .with_max_concurrent_streams(64);
    let stop = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");
    let stop = [(stop, ProtocolSupport::Full)];
    let behaviour = Hostile {
        stop: request_response::Behaviour::with_codec(Hop, stop, config.clone()),
        identify: identify::Behaviour::new(identify::Config::new("x/1".to_owned(), key.public())),
        ping: ping::Behaviour::default(),
        hop: request_response::Behaviour::with_codec(Hop, [(hop, ProtocolSupport::Full)], config),
    };
    let settings =
        swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, behaviour, key.public().to_peer_id(), settings)
}

/// A relay that gives each client the same answer; when it was asked.
async fn relay_that_says(seed: u8, answer: Vec<u8>) -> (Typed, Arc<Mutex<Vec<Instant>>>) {
    let mut swarm = hostile(seed);
    swarm.listen_on("/memory/0".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    let named = format!("{address}/p2p/{}", swarm.local_peer_id());
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = asked.clone();
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(HostileEvent::Hop(request_response::Event::Message {
                message: Message::Request { channel, .. },
                ..
            })) = swarm.select_next_some().await
            {
                times.lock().unwrap().push(Instant::now());
                let _ = swarm
                    .behaviour_mut()
                    .hop
                    .send_response(channel, answer.clone());
            }
        }
    });
    (named.parse().unwrap(), asked)
}

async fn client_of(seed: u8, relay: &Typed) -> (Handle, mpsc::Receiver<Event>, JoinHandle<()>) {
    let mut config = in_memory(seed);
    config.listen.clear();
    config.meeting = vec![relay.clone()];
    let (handle, events, driver) = start(config).unwrap();
    let task = tokio::spawn(driver.run(CancellationToken::new()));
    (handle, events, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_expiry_that_a_relay_names_makes_its_client_panic_or_ask_without_end() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let past = now.unwrap().as_secs() - 3600;
    for (seed, expire) in [(230, u64::MAX), (232, 0), (234, past), (236, u64::MAX / 2)] {
        let (relay, asked) = relay_that_says(seed, kept_until(expire)).await;
        let (handle, mut events, task) = client_of(seed + 1, &relay).await;
        let reserved = async {
            loop {
                if matches!(events.recv().await, Some(Event::Reserved { .. })) {
                    return;
                }
            }
        };
        timeout(PATIENCE, reserved).await.unwrap();
        // Long enough for several renewals by the bounds of the tests, one second and two.
        tokio::time::sleep(Duration::from_millis(4500)).await;
        let times = asked.lock().unwrap().clone();
        let gaps: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert!((2..=4).contains(&gaps.len()), "{expire}: {gaps:?}");
        let soonest = fast().renewals.soonest.mul_f32(0.95);
        assert!(gaps.iter().all(|gap| *gap >= soonest), "{expire}: {gaps:?}");
        assert!(handle.circuits().await.unwrap().client.is_empty());
        assert!(!task.is_finished());
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_refuses_or_answers_nonsense_is_asked_ever_more_seldom_and_counted() {
    for (seed, answer, why) in [
        (238, vec![0x08, 2, 0x28, 0xc8, 1], Refusal::Refused),
        (240, vec![0x08, 2, 0x28, 0xc9, 1], Refusal::Full),
        (242, vec![0xff; 20], Refusal::Malformed),
        (244, vec![], Refusal::Malformed),
    ] {
        let (relay, asked) = relay_that_says(seed, answer).await;
        let (handle, _events, task) = client_of(seed + 1, &relay).await;
        eventually("it is counted", PATIENCE, async || {
            let counts = handle.circuits().await.unwrap().client;
            counts.get(&why).is_some_and(|n| *n >= 2)
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked = asked.lock().unwrap().len();
        assert!((2..=4).contains(&asked), "{why}: {asked}");
        assert!(!task.is_finished());
        task.abort();
    }
}

/// A relay that gives its client a place, and then brings twenty circuits each 200 ms; on each of them it says `saying`.
async fn relay_that_floods(seed: u8, saying: Vec<u8>) -> Typed {
    let mut swarm = hostile(seed);
    swarm.listen_on("/memory/0".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    let named = format!("{address}/p2p/{}", swarm.local_peer_id());
    tokio::spawn(async move {
        let (mut client, mut again) = (None, tokio::time::interval(Duration::from_millis(200)));
        loop {
            tokio::select! {
                event = swarm.select_next_some() => {
                    if let SwarmEvent::Behaviour(HostileEvent::Hop(
                        request_response::Event::Message {
                            peer,
                            message: Message::Request { channel, .. },
                            ..
                        },
                    )) = event
                    {
                        client = Some(peer);
                        let answer = kept_until(u64::MAX);
                        let _ = swarm.behaviour_mut().hop.send_response(channel, answer);
                    }
                }
                _ = again.tick() => {
                    for _ in 0..20 {
                        let stop = &mut swarm.behaviour_mut().stop;
                        client.map(|client| stop.send_request(&client, saying.clone()));
                    }
                }
            }
        }
    });
    named.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_floods_its_client_with_circuits_is_bounded_and_counted() {
    // Silent ones, and ones of a message that makes no sense.
    for (seed, saying, why) in [
        (249, vec![], Refusal::Timeout),
        (251, vec![0xff; 20], Refusal::Malformed),
    ] {
        let relay = relay_that_floods(seed, saying).await;
        let (handle, mut events, task) = client_of(seed + 1, &relay).await;
        let reserved =
            async { while !matches!(events.recv().await, Some(Event::Reserved { .. })) {} };
        timeout(PATIENCE, reserved).await.unwrap();
        let count = async |why| {
            let counts = handle.circuits().await.unwrap().client;
            counts.get(&why).copied().unwrap_or(0)
        };
        let begun = Instant::now();
        eventually("they are counted", PATIENCE, async || {
            count(why).await >= 16
        })
        .await;
        if why == Refusal::Timeout {
            let (held, crowded) = (count(why).await, count(Refusal::Crowded).await);
            // Sixteen at a time, each for five seconds.
            let most = 16 * (1 + begun.elapsed().as_secs() / 5);
            assert!(held <= most && crowded >= 100, "{held} held, {crowded} not");
        }
        // The driver answers all the while, and keeps the place.
        assert!(begun.elapsed() < Duration::from_secs(9));
        assert!(!task.is_finished());
        task.abort();
    }
}

/// Strangers of whom each opens as many circuits as the relay lets it, and says nothing on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_circuits_of_strangers_leave_room_for_members() {
    let mut config = in_memory(246);
    config.serve = Serve::Anyone;
    let relay = Node::start(config).await;
    let mut config = in_memory(247);
    config.listen.clear();
    config.meeting = named(&relay);
    let b = Node::start(config).await;
    let to: Multiaddr = relay.address.to_string().parse().unwrap();
    let asked = circuit_to(&crate::p2p::peer_to_lib(b.peer()).unwrap());
    let at = crate::p2p::peer_to_lib(relay.peer()).unwrap();
    for seed in 100..112 {
        let (to, asked) = (to.clone(), asked.clone());
        let mut swarm = hostile(seed);
        tokio::spawn(async move {
            swarm.dial(to).unwrap();
            let mut again = tokio::time::interval(Duration::from_millis(150));
            let mut connected = false;
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => {
                        connected |= matches!(event, SwarmEvent::ConnectionEstablished { .. });
                    }
                    _ = again.tick(), if connected => {
                        swarm.behaviour_mut().hop.send_request(&at, asked.clone());
                    }
                }
            }
        });
    }
    eventually("the silent circuits are too many", PATIENCE, async || {
        b.handle.circuits().await.unwrap().silent >= 20
    })
    .await;
    let mut config = in_memory(248);
    config.listen.clear();
    config.meeting = named(&relay);
    let (handle, _events, driver) = start(config).unwrap();
    tokio::spawn(driver.run(CancellationToken::new()));
    b.members(&[(handle.peer(), &[LAB])]).await;
    handle
        .members([(b.peer(), vec![LAB])].into())
        .await
        .unwrap();
    let begun = Instant::now();
    let heard = vec![Heard::parse(&b.address.to_string()).unwrap()];
    assert_eq!(handle.connect_heard(heard, b.peer()).await, Ok(b.peer()));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

fn named(relay: &Node) -> Vec<Typed> {
    let named = format!("{}/p2p/{}", relay.address, relay.peer());
    vec![named.parse().unwrap()]
}
