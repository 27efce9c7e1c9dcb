//! A subnet whose founder is the enemy: any prefixes, any domain, made by hand and served to whoever asks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::join::{Invite, lookup};
use byway::model::record::{Admission, Genesis, Grant, Prefix6, Role, Signed, Term};
use byway::wire::control::{self, JoinAnswer, JoinRequest};
use ed25519_dalek::SigningKey;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::net::TcpListener;

use super::forge::{Forge, now};
use super::peer::{self, JOIN, peer_of};

/// What the founder wants the joiners to believe.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The subnet's name.
    pub name: Name,
    /// The version 4 prefix.
    pub cidr4: Ipv4Net,
    /// The version 6 prefix.
    pub cidr6: Option<Ipv6Net>,
    /// The domain of its names.
    pub domain: String,
}

/// A founded subnet.
pub struct Founder {
    key: SigningKey,
    genesis: Genesis,
}

impl Founder {
    /// Founds it.
    pub fn new(key: SigningKey, wish: &Wish) -> Founder {
        let genesis = Genesis {
            version: 1,
            owner: peer_of(&key),
            name: wish.name.clone(),
            cidr4: Some(wish.cidr4),
            cidr6: wish.cidr6.map_or(Prefix6::Derived, Prefix6::Given),
            block4: wish.cidr4.prefix_len().max(24),
            admission: Admission::Open,
            domain: wish.domain.clone(),
            grant_life: 86_400,
            created: now(),
            salt: [5; 16],
        };
        Founder { key, genesis }
    }

    /// Its ID.
    pub fn id(&self) -> SubnetId {
        self.genesis.id()
    }

    /// An invite to it, as a person pastes it.
    pub fn invite(&self, at: SocketAddr) -> String {
        let family = if at.is_ipv4() { "ip4" } else { "ip6" };
        let address = format!(
            "/{family}/{}/tcp/{}/p2p/{}",
            at.ip(),
            at.port(),
            peer_of(&self.key)
        );
        let expires = now().saturating_add(3600);
        Invite {
            subnet: self.id(),
            issuer: peer_of(&self.key),
            secret: [9; 16],
            expires,
            addresses: vec![address],
        }
        .to_text()
    }

    /// A grant with the block of that number of the pool; the whole pool where it is one block.
    fn grant(
        &self,
        subject: PeerId,
        data_key: [u8; 32],
        name: Name,
        number: u32,
    ) -> Result<Signed> {
        let (pool, length) = (
            self.genesis.cidr4.context("no version 4 pool")?,
            self.genesis.block4,
        );
        let step = 1_u32
            .checked_shl(32 - u32::from(length))
            .unwrap_or(0)
            .wrapping_mul(number);
        let block = Ipv4Net::new(u32::from(pool.network()).wrapping_add(step).into(), length)?;
        let own = block.hosts().next().context("an empty block")?;
        let role = if subject == self.genesis.owner {
            Role::Owner
        } else {
            Role::Member
        };
        let at = now();
        let grant = Grant {
            subject,
            data_key,
            seal_key: data_key.map(|byte| !byte),
            name,
            role,
            generation: 1,
            version: 1,
            seat: 0,
            addresses: vec![own.into()],
            leases: vec![IpNet::V4(block)],
            not_before: at,
            not_after: at.saturating_add(86_400),
            term: Term::Full,
            labels: [].into(),
        };
        Ok(Forge {
            subnet: self.id(),
            key: &self.key,
        }
        .grant(grant))
    }

    /// What a joiner is told.
    fn answer(&self, request: &JoinRequest) -> Result<JoinAnswer> {
        Ok(match request {
            JoinRequest::Probe(id) if *id != self.id() => JoinAnswer::Unknown,
            JoinRequest::Genesis(wanted) if *wanted == lookup(self.id()) => {
                JoinAnswer::Genesis(self.genesis.encode())
            }
            JoinRequest::Genesis(_) => JoinAnswer::Unknown,
            JoinRequest::Nonce { .. } => JoinAnswer::Nonce([4; 16]),
            JoinRequest::Ask(signed) => {
                let ask = signed
                    .verify()
                    .map_err(|e| anyhow::anyhow!("{}", e.message))?;
                let owner =
                    self.grant(self.genesis.owner, [8; 32], Name::from_host("founder"), 1)?;
                let records = vec![owner, self.grant(ask.joiner, ask.data_key, ask.name, 2)?];
                JoinAnswer::Admitted {
                    genesis: self.genesis.encode(),
                    records,
                }
            }
            _ => JoinAnswer::Known,
        })
    }

    /// Lets everybody in who asks, as long as `lasts`. Says `asked` on standard output for each.
    ///
    /// # Errors
    /// It cannot listen there.
    pub async fn serve(&self, at: SocketAddr, lasts: Duration) -> Result<()> {
        let listener = TcpListener::bind(at)
            .await
            .with_context(|| format!("listen on {at}"))?;
        println!("ready {} {}", self.id(), self.invite(at));
        let accepting = async {
            while let Ok((stream, from)) = listener.accept().await {
                let founder = Founder {
                    key: self.key.clone(),
                    genesis: self.genesis.clone(),
                };
                tokio::spawn(async move {
                    let founder = std::sync::Arc::new(founder);
                    let key = founder.key.clone();
                    let serving = peer::accept(stream, &key, move |_, mut stream| {
                        let founder = std::sync::Arc::clone(&founder);
                        async move {
                            let reply = |body: Vec<u8>| {
                                let request: JoinRequest = control::decode(&body).ok()?;
                                println!("asked {from}");
                                founder
                                    .answer(&request)
                                    .ok()
                                    .map(|answer| control::encode(&answer))
                            };
                            // A stream for another protocol ends here; the joiner asks again.
                            let _ = peer::serve_one(&mut stream, JOIN, reply).await;
                        }
                    });
                    let _ = serving.await;
                });
            }
        };
        let _ = tokio::time::timeout(lasts, accepting).await;
        Ok(())
    }
}
