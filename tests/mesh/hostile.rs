//! A peer that keeps no rule of its own: raw libp2p with whatever key it is given.

use std::collections::BTreeMap;
use std::time::Duration;

use byway::model::id::{PeerId, SubnetId};
use byway::p2p::{self, AskError, DataStream, Event, Handle, Protocol, TransportKind};
use byway::packet::offload::Offload;
use byway::wire::control::{self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest};
use byway::wire::frame;
use byway::wire::service::{ServiceAnswer, ServiceRequest};
use futures::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::node::{Node, PATIENCE};

pub struct Hostile {
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    _stop: DropGuard,
}

impl Hostile {
    pub fn start(secret: [u8; 32]) -> Hostile {
        Hostile::start_as(secret, byway::wire::agent::text())
    }

    /// With a line of its own about its program.
    pub fn start_as(secret: [u8; 32], agent: String) -> Hostile {
        let mut config = p2p::Config::new(secret);
        config.agent = agent;
        config.transport = TransportKind::Memory;
        config.listen = vec!["/memory/0".parse().unwrap()];
        let (handle, events, driver) = p2p::start(config).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(driver.run(stop.clone()));
        Hostile {
            handle,
            events,
            _stop: stop.drop_guard(),
        }
    }

    pub fn peer(&self) -> PeerId {
        self.handle.peer()
    }

    /// Connects; `subnets` is what it believes to share.
    pub async fn meet(&self, victim: &Node, subnets: &[SubnetId]) {
        let members = BTreeMap::from([(victim.peer, subnets.to_vec())]);
        self.handle
            .members(if subnets.is_empty() {
                BTreeMap::new()
            } else {
                members
            })
            .await
            .unwrap();
        let address: p2p::Typed = victim.address().parse().unwrap();
        assert_eq!(
            self.handle.connect(vec![address], None).await,
            Ok(victim.peer)
        );
    }

    /// The next stream to write packets to.
    pub async fn stream_out(&mut self) -> DataStream {
        self.wait(|event| match event {
            Event::StreamOut { stream, .. } => Some(stream),
            _ => None,
        })
        .await
        .expect("a stream")
    }

    pub async fn wait<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> Option<T> {
        let found = async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = pick(event) {
                    return Some(found);
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, found).await.ok().flatten()
    }

    pub async fn raw(
        &self,
        victim: &Node,
        protocol: Protocol,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, AskError> {
        self.handle
            .ask(victim.peer, protocol, body, Duration::from_secs(8))
            .await
    }

    pub async fn control(
        &self,
        victim: &Node,
        request: &ControlRequest,
    ) -> Result<ControlAnswer, AskError> {
        let body = self
            .raw(victim, Protocol::Control, control::encode(request))
            .await?;
        Ok(control::decode(&body).unwrap())
    }

    /// Asks a service; what came back is read.
    pub async fn service(
        &self,
        victim: &Node,
        kind: u16,
        id: u64,
        body: &[u8],
    ) -> Result<ServiceAnswer, AskError> {
        let request = ServiceRequest {
            kind,
            id,
            subnet: None,
            deadline_ms: 8000,
            body: body.to_vec(),
        };
        let answer = ServiceAnswer::parse(
            self.raw(victim, Protocol::Service, request.encode())
                .await?,
        )
        .unwrap();
        assert_eq!(answer.id, id);
        Ok(answer)
    }

    pub async fn join(&self, victim: &Node, request: &JoinRequest) -> JoinAnswer {
        let body = self
            .raw(victim, Protocol::Join, control::encode(request))
            .await
            .unwrap();
        control::decode(&body).unwrap()
    }
}

/// Writes packets as a member would, without asking whether it may.
pub async fn write(stream: &mut DataStream, packets: &[Vec<u8>]) -> std::io::Result<()> {
    for packet in packets {
        stream
            .write_all(&frame::packet_header(&Offload::NONE, packet.len()))
            .await?;
        stream.write_all(packet).await?;
    }
    stream.flush().await
}
