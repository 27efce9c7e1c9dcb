//! Programs that the tests and `scripts/bench` run inside a namespace: `netns tool NAME ARGUMENTS…`, or the example `lab`.
//!
//! They are this same executable, so nothing has to be installed. All of them end by themselves or with SIGTERM.

pub mod frame;
mod model;
mod nat;
mod node;
pub mod pcap;
mod relay;
mod socket;
mod traffic;
mod without;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "tools of the laboratory
  capture INTERFACE FILE [for=SECONDS] [max=BYTES]   writes every frame, both directions; prints \"ready\"
  replay INTERFACE FILE to=A:P [from=A:P] [as=A:P] [mac=M] [last=N] [pps=N]
                                            sends the datagrams of a capture that went from FROM to TO again, as from AS
  thief IN OUT from=A:P to=A:P as=A:P for=SECONDS    copies each datagram seen on IN to OUT at once, with another sender
  flood INTERFACE mac=M to=A:P [from=A:P] [index=N] [size=N] [pps=N] [count=N]
                                            random datagrams from random senders; with an index, frames as if of ours
  blast A:P [size=N] [pps=N] [for=SECONDS]  a socket's datagrams at a steady rate; prints what was sent
  sink A:P [for=SECONDS]                    counts datagrams until one second of silence or SIGTERM; prints the count
  relay INTERFACE INTERFACE [delay=MICROSECONDS] [loss=PER_100000] [queue=PACKETS]
                                            a wire between two interfaces, both ways
  nat NAMESPACE:DEVICE NAMESPACE:DEVICE public=ADDRESS kind=KIND [seed=N]
                                            a NAT between two TUN devices that it makes, inside and outside; KIND is
                                            full-cone, address-restricted, port-restricted or symmetric; a line on
                                            standard input is another kind, and empties its tables
  without-ipv6 PROGRAM ARGUMENTS…           becomes the program, for which there is no socket of IPv6
  model [members=N] [workloads=N] [prefixes=N]       what a View and a message cost; prints JSON";

/// The words of a command line: positions first, then `name=value`.
pub struct Words {
    plain: Vec<String>,
    named: BTreeMap<String, String>,
}

impl Words {
    fn parse(words: impl Iterator<Item = String>) -> Words {
        let mut all = Words {
            plain: Vec::new(),
            named: BTreeMap::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => drop(all.named.insert(name.to_owned(), value.to_owned())),
                None => all.plain.push(word),
            }
        }
        all
    }

    /// A word by its place.
    ///
    /// # Errors
    /// It is not there.
    pub fn at(&self, place: usize) -> Result<&str> {
        self.plain.get(place).map(String::as_str).context(USAGE)
    }

    /// A named value, if it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| anyhow::anyhow!("{name}={text} cannot be read\n{USAGE}"))
        };
        self.named.get(name).map(parse).transpose()
    }

    /// A named value that must be there.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn need<T: FromStr>(&self, name: &str) -> Result<T> {
        self.find(name)?
            .with_context(|| format!("{name}= is missing\n{USAGE}"))
    }

    /// A named value, or `otherwise`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn or<T: FromStr>(&self, name: &str, otherwise: T) -> Result<T> {
        Ok(self.find(name)?.unwrap_or(otherwise))
    }
}

/// An Ethernet address as text.
pub fn mac(text: &str) -> Result<frame::Mac> {
    let parts = text
        .split(':')
        .map(|p| u8::from_str_radix(p, 16))
        .collect::<Result<Vec<_>, _>>();
    let parts = parts.with_context(|| format!("{text} is no Ethernet address"))?;
    ensure!(parts.len() == 6, "{text} is no Ethernet address");
    parts
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text} is no Ethernet address"))
}

fn run(mut words: impl Iterator<Item = String>) -> Result<()> {
    let verb = words.next().context(USAGE)?;
    if verb == "without-ipv6" {
        return without::ipv6(words);
    }
    let words = Words::parse(words);
    match verb.as_str() {
        "capture" => traffic::capture(&words),
        "replay" => traffic::replay(&words),
        "thief" => traffic::thief(&words),
        "flood" => traffic::flood(&words),
        "blast" => traffic::blast(&words),
        "sink" => traffic::sink(&words),
        "relay" => relay::run(&words),
        "nat" => nat::run(&words),
        "model" => model::run(&words),
        _ => bail!(USAGE),
    }
}

/// Runs the tool the words name.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
