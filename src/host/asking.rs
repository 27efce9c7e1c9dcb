//! Questions for names out of a workload's namespace, brought to our resolver whatever its `resolv.conf` says.
//!
//! Docker answers names by a server of its own inside the container, which sends what it does not know to the host's servers:
//! out of the container's namespace, by a way that does not pass us. A rule in that namespace turns these questions to the
//! gateway, which is our resolver. Packets to the loopback are left alone: there Docker's server is.
//!
//! The rule is made by [`helper`], which enters the namespace.

use std::net::IpAddr;

use anyhow::Context;

use super::netns;
use crate::helper;
use crate::model::host::NetnsRef;

/// Turns what the namespace asks by that link to the gateways; `own` are the workload's addresses there.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not take the rules.
pub async fn turn(
    netns: &NetnsRef,
    link: &str,
    own: &[IpAddr],
    gateways: &[IpAddr],
) -> anyhow::Result<()> {
    helper::turn_names(netns.clone(), link, own, gateways)
        .await
        .context("turn questions for names to us")
}

/// Leaves the questions to themselves again. It is no error where that is so already, or the namespace is gone.
///
/// # Errors
/// When the kernel does not remove the rules.
pub async fn leave(netns: &NetnsRef, link: &str) -> anyhow::Result<()> {
    if !matches!(netns::exists(netns).await, Ok(true)) {
        return Ok(());
    }
    helper::turn_names(netns.clone(), link, &[], &[])
        .await
        .context("leave questions for names alone")
}
