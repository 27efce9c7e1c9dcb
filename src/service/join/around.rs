//! What a subnet must leave to this machine: judged before a join tells anybody of this node, and again before it is taken.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::model::policy::{Around, Need};
use crate::p2p::Address;
use crate::service::Mesh;
use crate::{dns, host};

/// The machine whose networks are looked at.
#[derive(Debug, Clone)]
pub(crate) enum Surroundings {
    /// This network namespace's kernel, without what the daemon of this `instance` has put there.
    Kernel { instance: Arc<str> },
    /// None: there is a machine of nothing but memory, or nothing of a subnet would ever be put on it.
    Nothing,
}

impl Surroundings {
    /// Prefixes the machine routes elsewhere, its gateways, its resolvers and its links.
    ///
    /// # Errors
    /// `E-NETLINK`.
    async fn look(&self) -> Result<Around, Error> {
        let Surroundings::Kernel { instance } = self else {
            return Ok(Around::default());
        };
        let failed = |e: anyhow::Error| {
            Error::new(
                ErrorKind::Failed,
                Code::Netlink,
                format!("read this machine's routes: {e:#}"),
            )
        };
        let routed = host::used_prefixes(instance).await.map_err(failed)?;
        let gateways = host::gateways(instance).await.map_err(failed)?;
        let links = host::foreign_links(instance).await.map_err(failed)?;
        let need = |what: &'static str| {
            move |address: IpAddr| Need {
                address,
                what: format!("the {what} {address}"),
            }
        };
        let needs = gateways.into_iter().map(need("gateway"));
        let resolvers = dns::resolvers().await.into_iter().map(need("resolver"));
        Ok(Around {
            routed,
            needs: needs.chain(resolvers).collect(),
            links,
        })
    }
}

/// What this machine cannot give away to a subnet: what it routes, its resolvers and gateways, and where its peers are
/// reached. What lies in a subnet that is here already is left out: the underlay is not there.
pub(crate) async fn around(mesh: &Arc<Mesh>) -> Result<Around, Error> {
    let mut around = mesh.surroundings.look().await?;
    let peers = mesh.peers.status().await.unwrap_or_default();
    let connected = peers
        .iter()
        .flat_map(|p| &p.connections)
        .filter_map(|c| c.remote.parse::<Address>().ok()?.ip());
    let reached = peers
        .iter()
        .flat_map(|p| &p.reached)
        .filter_map(Address::ip);
    let mut addresses: BTreeSet<IpAddr> = connected
        .chain(reached)
        .map(|ip| ip.to_canonical())
        .collect();
    let (here, typed) = mesh.node.prefixes_and_hints().await?;
    addresses.extend(
        typed
            .iter()
            .chain(&mesh.config().bootstrap)
            .filter_map(|a| a.parse::<Address>().ok()?.ip()),
    );
    addresses.retain(|ip| !ip.is_loopback());
    let what = |address: IpAddr| Need {
        address,
        what: format!("{address}, where a peer is reached"),
    };
    around.needs.extend(addresses.into_iter().map(what));
    around
        .needs
        .retain(|need| !here.iter().any(|prefix| prefix.contains(&need.address)));
    Ok(around)
}
