//! One change at a time to links, addresses, routes, rules or neighbours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, bail};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Netlink, errno, local_address, plain};
use crate::host::rules::rule_message;
use crate::model::host::{Change, LinkSet, PROTOCOL, Route, WorkloadConfig, host_mac, inner_mac};

/// Where the search for a group that no link is in begins: `byw` in ASCII, far from the numbers people give.
const FIRST_GROUP: u32 = 0x0062_7977;

/// A refusal that says the state is as wanted already.
fn unless(result: Result<(), rtnetlink::Error>, fine: &[i32]) -> anyhow::Result<()> {
    match result {
        Err(error) if errno(&error).is_some_and(|code| fine.contains(&code)) => Ok(()),
        other => other.map_err(plain),
    }
}

fn host_length(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Netlink {
    /// Makes one change to links, addresses, routes, rules or neighbours.
    ///
    /// # Errors
    /// When the kernel refuses; what is done or gone already is no error.
    pub async fn apply(&self, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::Conflict { link, .. } => bail!("a link named {link} exists that is not ours"),
            Change::RestLink { name, .. } => self.rest_link(name).await,
            Change::DeleteLink { name, .. } => self.delete_link(name).await,
            Change::Rename { from, to, .. } => self.rename(from, to).await,
            Change::SetLink { link, set, .. } => self.set_link(link, set).await,
            Change::AddAddress { link, address, .. } => self.add_address(link, *address).await,
            Change::DelAddress { link, address, .. } => self.del_address(link, *address).await,
            Change::SetNeighbour {
                link, address, mac, ..
            } => {
                let index = self.index(link).await?;
                let request = self
                    .handle
                    .neighbours()
                    .add(index, *address)
                    .link_layer_address(mac)
                    .replace();
                request.execute().await.map_err(plain)
            }
            Change::DelNeighbour { link, address, .. } => {
                let index = self.index(link).await?;
                let mut request = self.handle.neighbours().add(index, *address);
                let message = std::mem::take(request.message_mut());
                unless(
                    self.handle.neighbours().del(message).execute().await,
                    &[libc::ENOENT, libc::ESRCH],
                )
            }
            Change::SetRoute { route, replace, .. } => {
                let message = self.route_message(route).await?;
                let mut request = self.handle.route().add(message);
                if *replace {
                    request = request.replace();
                }
                request.execute().await.map_err(plain)
            }
            Change::DelRoute { route, .. } => {
                let message = self.route_message(route).await?;
                unless(
                    self.handle.route().del(message).execute().await,
                    &[libc::ESRCH, libc::ENOENT],
                )
            }
            Change::AddRule { rule, .. } => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule_message(rule);
                unless(request.execute().await, &[libc::EEXIST])
            }
            Change::DelRule { rule, .. } => {
                let message = rule_message(rule);
                unless(
                    self.handle.rule().del(message).execute().await,
                    &[libc::ENOENT, libc::ESRCH],
                )
            }
            other => bail!("{other} is not done over netlink"),
        }
    }

    /// Makes a veth pair with the far end in the namespace of that descriptor; without one it stays in this namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn create_veth(
        &self,
        instance: &str,
        workload: &WorkloadConfig,
        netns: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<()> {
        let inner = workload
            .mac
            .unwrap_or_else(|| inner_mac(instance, &workload.host_link));
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(workload.inner_link.clone())
            .address(inner.to_vec())
            .mtu(u32::from(workload.mtu));
        if let Some(netns) = netns {
            peer = peer.setns_by_fd(netns.as_raw_fd());
        }
        let peer = peer.build();
        let pair = LinkVeth::new(&workload.host_link, &workload.inner_link)
            .address(host_mac(instance, &workload.host_link).to_vec())
            .mtu(u32::from(workload.mtu))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(plain)
    }

    async fn rest_link(&self, name: &str) -> anyhow::Result<()> {
        let Ok(index) = self.index(name).await else {
            return Ok(());
        };
        let down = LinkUnspec::new_with_index(index).down().build();
        unless(
            self.handle.link().change(down).execute().await,
            &[libc::ENODEV],
        )
    }

    async fn delete_link(&self, name: &str) -> anyhow::Result<()> {
        let Ok(index) = self.index(name).await else {
            return Ok(());
        };
        unless(
            self.handle.link().del(index).execute().await,
            &[libc::ENODEV],
        )
    }

    /// Deletes links and gives what could not be, each with why not. The kernel waits for every processor each time that links go, so several
    /// go at once: they are put into a group of their own, and the group is deleted. Only such links are ever in it.
    pub(crate) async fn delete_links<'a>(
        &self,
        changes: &'a [Change],
    ) -> Vec<(&'a Change, String)> {
        let names: BTreeSet<&str> = changes
            .iter()
            .filter_map(|change| match change {
                Change::DeleteLink { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        if names.len() > 1
            && let Err(error) = self.delete_group(&names).await
        {
            tracing::debug!(error = format!("{error:#}"), "links are deleted one by one");
        }
        let mut left = Vec::new();
        // What is gone already is no failure.
        for change in changes {
            if let Err(error) = self.apply(change).await {
                left.push((change, format!("{error:#}")));
            }
        }
        left
    }

    async fn delete_group(&self, names: &BTreeSet<&str>) -> anyhow::Result<()> {
        let messages: Vec<LinkMessage> =
            super::all("links", self.handle.link().get().execute()).await?;
        let attributes = || messages.iter().flat_map(|m| &m.attributes);
        let taken: BTreeSet<u32> = attributes()
            .filter_map(|a| match a {
                LinkAttribute::Group(group) => Some(*group),
                _ => None,
            })
            .collect();
        let free = (FIRST_GROUP..).find(|group| !taken.contains(group));
        let group = free.context("no group of links is free")?;
        let goes = messages.iter().filter(|m| {
            m.attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(name) if names.contains(name.as_str())))
        });
        let mut any = false;
        for message in goes {
            let link = LinkUnspec::new_with_index(message.header.index)
                .append_extra_attribute(LinkAttribute::Group(group))
                .build();
            unless(
                self.handle.link().change(link).execute().await,
                &[libc::ENODEV],
            )?;
            any = true;
        }
        if !any {
            return Ok(());
        }
        let mut request = self.handle.link().del(0);
        request
            .message_mut()
            .attributes
            .push(LinkAttribute::Group(group));
        unless(request.execute().await, &[libc::ENODEV])
    }

    /// Older kernels rename only what is down.
    async fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let index = self.index(from).await?;
        let named = || LinkUnspec::new_with_index(index).name(to.to_owned());
        match self.handle.link().change(named().build()).execute().await {
            Err(error) if errno(&error) == Some(libc::EBUSY) => {
                let down = LinkUnspec::new_with_index(index).down().build();
                self.handle
                    .link()
                    .change(down)
                    .execute()
                    .await
                    .map_err(plain)?;
                self.handle
                    .link()
                    .change(named().build())
                    .execute()
                    .await
                    .map_err(plain)?;
                let up = LinkUnspec::new_with_index(index).up().build();
                self.handle.link().change(up).execute().await.map_err(plain)
            }
            other => other.map_err(plain),
        }
    }

    async fn set_link(&self, name: &str, set: &LinkSet) -> anyhow::Result<()> {
        let index = self.index(name).await?;
        let mut link = LinkUnspec::new_with_index(index);
        if let Some(alias) = &set.alias {
            link = link.alias(alias.clone());
        }
        if let Some(mac) = set.mac {
            link = link.address(mac.to_vec());
        }
        if let Some(mtu) = set.mtu {
            link = link.mtu(mtu);
        }
        if let Some(length) = set.txqueuelen {
            link = link.txqueuelen(length);
        }
        if let Some(size) = set.gso_max_size {
            link = link.append_extra_attribute(LinkAttribute::GsoMaxSize(size));
        }
        if set.up {
            link = link.up();
        }
        self.handle
            .link()
            .change(link.build())
            .execute()
            .await
            .map_err(plain)
    }

    async fn add_address(&self, link: &str, address: IpAddr) -> anyhow::Result<()> {
        let index = self.index(link).await?;
        let mut request = self
            .handle
            .address()
            .add(index, address, host_length(&address))
            .replace();
        let message = request.message_mut();
        // No duplicate detection: leases are unique, and a tentative address would not answer for a second.
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Noprefixroute | AddressFlags::Nodad,
        ));
        request.execute().await.map_err(plain)
    }

    /// Whatever prefix length it was entered with.
    async fn del_address(&self, link: &str, address: IpAddr) -> anyhow::Result<()> {
        let index = self.index(link).await?;
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let mut found = Vec::new();
        self.address_messages(index, family, |message| {
            if local_address(&message) == Some(address) {
                found.push(message);
            }
        })
        .await?;
        for message in found {
            unless(
                self.handle.address().del(message).execute().await,
                &[libc::EADDRNOTAVAIL],
            )?;
        }
        Ok(())
    }

    async fn route_message(&self, route: &Route) -> anyhow::Result<RouteMessage> {
        let index = self.index(&route.link).await?;
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.destination.addr(), route.destination.prefix_len())?
            .output_interface(index)
            .table_id(route.table)
            .protocol(RouteProtocol::Other(PROTOCOL));
        builder = match route.gateway {
            Some(gateway) => builder.gateway(gateway)?,
            None if route.destination.addr().is_ipv4() => builder.scope(RouteScope::Link),
            None => builder,
        };
        if let Some(source) = route.source {
            builder = builder.pref_source(source)?;
        }
        Ok(builder.build())
    }
}
