//! A site of the laboratory by itself: a NAT between two namespaces, for demonstrations and for who looks into something.

use std::io::BufRead;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Words;
use crate::nat::pipe::{End, Pipe};
use crate::nat::{Kind, Nat, Site};

fn kind(name: &str) -> Result<Kind> {
    Ok(match name {
        "full-cone" => Kind::full_cone(),
        "address-restricted" => Kind::address_restricted(),
        "port-restricted" => Kind::port_restricted(),
        "symmetric" => Kind::symmetric(),
        _ => bail!(
            "no kind of NAT: {name} (full-cone, address-restricted, port-restricted, symmetric)"
        ),
    })
}

/// `INSIDE:DEVICE` as `ip netns` names it.
fn end(word: &str) -> Result<End> {
    let (space, device) = word.split_once(':').context("NAMESPACE:DEVICE")?;
    Ok(End {
        space: PathBuf::from("/run/netns").join(space),
        device: device.to_owned(),
    })
}

/// `nat INSIDE:DEVICE OUTSIDE:DEVICE public=ADDRESS kind=KIND [seed=N]`. A line on standard input is another kind; its end is
/// no end, SIGTERM is.
///
/// # Errors
/// A device cannot be made, or a word is not understood.
pub fn run(words: &Words) -> Result<()> {
    let (inside, outside) = (end(words.at(0)?)?, end(words.at(1)?)?);
    let (public, name): (Ipv4Addr, String) = (words.need("public")?, words.need("kind")?);
    let seed = words.or("seed", 1)?;
    let site = Site::behind(vec![Nat::new(kind(&name)?, public, seed)]);
    let pipe = Pipe::start(site, inside, outside, seed)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let other = kind(line?.trim())?;
        let mut inner = pipe.inner();
        let nat = inner.site.nats.last_mut().context("no NAT")?;
        *nat.kind() = other;
        nat.reboot(public);
    }
    loop {
        std::thread::park();
    }
}
