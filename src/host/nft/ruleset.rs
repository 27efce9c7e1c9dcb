//! The text of our table: its sets, its chains, and everything in one transaction.
//!
//! Pure. The chains are the same for every configuration; only elements differ. Text and not JSON, because nft 1.0.6
//! cannot create by JSON a map whose value is a concatenation (it silently makes a set), and the schema types know
//! neither sets with statements (`counter`) nor elements that start from a count.
//!
//! ```text
//! hook         priority  what it decides
//! prerouting   -300      spoofed sources, noise of workloads                       (raw, before conntrack); what their
//!                        kernels say of their groups and ask of routers is not counted; hardware addresses of virtual
//!                        machines, which alone may ask for an address and a router
//! prerouting   -150      weak host, but for answers of what others translated; connections per workload and member,
//!                        and none of who holds too many;
//!                        bytes back to clients
//! prerouting   -100      port maps: exact address first, then every local address  (nat)
//! output       -100      the same for clients on this machine                      (nat)
//! forward      -150      TCP segment size fits the way
//! forward         0      only what was asked for passes to or from our links, or through one that forwards only for us
//! input           0      what workloads and members may say to this machine; a TCP segment of a flow that was ended, or
//!                        forgotten, is reset here and in forward: else a port that is opened again resumes it
//! output          0      what this machine says to them in connections that were ended
//! input, forward, output 0: flows without connections that were ended bear a mark (`conntrack::ENDED`)
//! postrouting   100      maps to other peers come from this node's address         (nat)
//! postrouting   150      bytes to workloads
//! input         150      bytes to this machine itself, where a map leads there; output 150 the bytes back
//! wherever a packet is refused: it counts for the workload that sent it, and for the one that it was sent to  (`refused`)
//! forward      -500, 500 our probes, counted before and behind everybody's chains; input the same  (`probes`)
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::atom::{CLOSED, FAMILIES, REFUSED_FROM, text};
use super::counters::{Count, Counters, STRANGERS};
use super::elements::Elements;
use super::probes;

/// Connections one workload may begin at once, and then each second. Conntrack holds 65,536 entries on a machine with
/// 1 GiB; one flooder must leave most of them to the others.
///
/// A rate, and not `ct count` of what is open: an element that counts connections takes conntrack's hooks with it when it
/// goes. Since `nft_connlimit` copies an element's expression without counting it as a user of conntrack and uncounts it at
/// the end (Linux 6.18), a few dozen changes or one restart of a large subnet left the namespace without conntrack, and
/// so without port maps, replies and Docker's own NAT. What is open is bounded by who reads the table from time to time
/// ([`Crowd`](crate::model::host::Crowd)).
pub const WORKLOAD_CONNECTIONS: (u32, u32) = (4096, 100);

/// The same for the addresses of one lease of another member, into this machine. A member may have many workloads behind
/// its lease; it must leave most of conntrack to the others all the same.
pub const MEMBER_CONNECTIONS: (u32, u32) = (16_384, 400);

/// Packets of neighbour discovery that the virtual machine at one TAP may send at once, and then each second. The kernel
/// makes an entry of its neighbour table for each address that solicits, and that table has 1,024 places for the whole
/// machine: nobody else would find a router if one guest took them all.
pub const SOLICITATIONS: (u32, u32) = (32, 1);

/// What an element says that is found only where more connections begin than it may.
fn over((at_once, each_second): (u32, u32)) -> String {
    format!("limit rate over {each_second}/second burst {at_once} packets")
}

/// Named counters of the table: how many packets were dropped and why.
pub const DROPS: [&str; 4] = ["filtered", "flood", "source_not_leased", "weak_host"];

/// A set or map: name, its `type` and what else its block says.
struct SetSpec {
    kind: &'static str,
    name: String,
    body: String,
}

fn set(name: impl Into<String>, body: impl Into<String>) -> SetSpec {
    SetSpec {
        kind: "set",
        name: name.into(),
        body: body.into(),
    }
}

fn map(name: impl Into<String>, body: impl Into<String>) -> SetSpec {
    SetSpec {
        kind: "map",
        name: name.into(),
        body: body.into(),
    }
}

/// Every set and map, in the order they are written.
fn specs() -> Vec<SetSpec> {
    let mut specs = link_specs();
    for (v, addr) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
        specs.extend(address_specs(v, addr));
        specs.extend(map_specs(
            &format!("exact{v}"),
            &format!("{addr} . inet_proto . inet_service"),
            addr,
        ));
        specs.extend(map_specs(
            &format!("any{v}"),
            "inet_proto . inet_service",
            addr,
        ));
    }
    specs
}

/// The sets of links, and of what of the machine itself each reaches.
fn link_specs() -> Vec<SetSpec> {
    vec![
        set("links", "type ifname"),
        set("tuns", "type ifname"),
        set("workloads", "type ifname"),
        set("taps", "type ifname"),
        set("macs", "type ifname . ether_addr"),
        set("solicits", format!("type ifname; {}", over(SOLICITATIONS))),
        // Filled by the packets themselves: a listing passes it over, see `counters`.
        set(
            STRANGERS,
            "type ifname . ether_addr; size 64; flags dynamic,timeout; timeout 2m",
        ),
        set(FAMILIES, "type nf_proto"),
        // Not a dynamic set: the kernel would collect elements without connections, and the listing would change by itself.
        set(
            "flood",
            format!("type ifname; {}", over(WORKLOAD_CONNECTIONS)),
        ),
        set("over", "type ifname"),
        set("host_open", "type ifname"),
        set(
            "host_ports",
            "type ifname . inet_proto . inet_service; flags interval",
        ),
        set(CLOSED, "type ifname; counter"),
        set(REFUSED_FROM, "type ifname; counter"),
    ]
}

/// The sets and maps of addresses of one family, `v`.
fn address_specs(v: &str, addr: &str) -> [SetSpec; 12] {
    [
        set(format!("barred{v}"), "type ifname"),
        set(
            format!("crowd{v}"),
            format!("type {addr}; flags interval; {}", over(MEMBER_CONNECTIONS)),
        ),
        set(format!("over{v}"), format!("type {addr}; flags interval")),
        set(
            format!("overlay{v}"),
            format!("type {addr}; flags interval"),
        ),
        set(format!("own{v}"), format!("type {addr}")),
        set(format!("leases{v}"), format!("type ifname . {addr}")),
        set(format!("refused_to{v}"), format!("type {addr}; counter")),
        set(format!("local{v}"), format!("type ifname . {addr}")),
        set(
            format!("member{v}"),
            format!("type ifname . {addr}; flags interval"),
        ),
        set(
            format!("within{v}"),
            format!("type {addr} . {addr}; flags interval"),
        ),
        map(format!("source{v}"), format!("type ifname : {addr}")),
        map(format!("self{v}"), format!("type {addr} . {addr} : {addr}")),
    ]
}

/// The maps of ports of one kind and family, such as `any4`, with who may use them and what they count.
fn map_specs(kind: &str, key: &str, addr: &str) -> Vec<SetSpec> {
    let mut specs = vec![
        map(kind, format!("type {key} : {addr} . inet_service")),
        set(format!("mapped_{kind}"), format!("type {key}")),
        set(format!("guarded_{kind}"), format!("type {key}")),
        set(
            format!("allowed_{kind}"),
            format!("type {key} . {addr}; flags interval"),
        ),
    ];
    let counters = ["conn", "rx", "tx"]
        .map(|counted| set(format!("{counted}_{kind}"), format!("type {key}; counter")));
    specs.extend(counters);
    specs
}

/// Chains of every table of ours.
const CHAINS: &str = include_str!("chains.nft");

/// The chains that count bytes: lookups by the original tuple, whose port has a type only once the protocol is known.
fn counting_chain(counted: &str) -> String {
    let mut chain = format!("\tchain count_{counted} {{\n");
    for (v, ip) in [("4", "ip"), ("6", "ip6")] {
        for proto in ["tcp", "udp"] {
            let _ = writeln!(
                chain,
                "\t\tmeta l4proto {proto} ct original {ip} daddr . meta l4proto . ct original proto-dst @{counted}_exact{v} return"
            );
        }
        for proto in ["tcp", "udp"] {
            let _ = writeln!(
                chain,
                "\t\tmeta nfproto ipv{v} meta l4proto {proto} meta l4proto . ct original proto-dst @{counted}_any{v} return"
            );
        }
    }
    chain.push_str("\t}\n");
    chain
}

/// The chain that accepts what a map of ours led here: by what was asked for, and by whom. Another program may have
/// translated it.
fn mapped_chain() -> String {
    let mut chain = "\tchain mapped {\n".to_owned();
    for (v, ip) in [("4", "ip"), ("6", "ip6")] {
        for kind in ["exact", "any"] {
            for proto in ["tcp", "udp"] {
                let (family, key) = match kind {
                    "exact" => (String::new(), format!("ct original {ip} daddr . ")),
                    _ => (format!("meta nfproto ipv{v} "), String::new()),
                };
                let only = format!("{family}meta l4proto {proto}");
                let key = format!("{key}meta l4proto . ct original proto-dst");
                let _ = writeln!(
                    chain,
                    "\t\t{only} {key} @guarded_{kind}{v} {key} . ct original {ip} saddr != @allowed_{kind}{v} return"
                );
                let _ = writeln!(chain, "\t\t{only} {key} @mapped_{kind}{v} accept");
            }
        }
    }
    chain.push_str("\t}\n");
    chain
}

/// The transaction that brings table `table` from any state to `elements`, with counters going on from `counters`.
pub fn whole(table: &str, elements: &Elements, counters: &Counters) -> String {
    // Without the first line the second fails where there is no table; `destroy` is unknown to nft 1.0.6.
    let mut out =
        format!("add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
    for drop in DROPS {
        let Count { packets, bytes } = counters.drops.get(drop).copied().unwrap_or_default();
        let _ = writeln!(
            out,
            "\tcounter {drop} {{ packets {packets} bytes {bytes}; }}"
        );
    }
    for name in probes::names() {
        let _ = writeln!(out, "\tcounter {name} {{ packets 0 bytes 0; }}");
    }
    let (none, nothing) = (BTreeMap::new(), BTreeMap::new());
    let sets = elements.spelled_out();
    for SetSpec { kind, name, body } in specs() {
        let _ = writeln!(
            out,
            "\t{kind} {name} {{\n\t\t{}",
            body.replace("; ", "\n\t\t")
        );
        let counts = counters.sets.get(&name).unwrap_or(&none);
        let counted = body.ends_with("counter");
        let lines: Vec<String> = sets
            .get(&name)
            .unwrap_or(&nothing)
            .iter()
            .map(|(key, value)| {
                let mut line = text(key);
                if counted {
                    let Count { packets, bytes } = counts.get(key).copied().unwrap_or_default();
                    let _ = write!(line, " counter packets {packets} bytes {bytes}");
                }
                if let Some(value) = value {
                    let _ = write!(line, " : {}", text(value));
                }
                line
            })
            .collect();
        if !lines.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {} }}", lines.join(",\n\t\t\t"));
        }
        out.push_str("\t}\n");
    }
    out.push_str(CHAINS);
    out.push_str(&mapped_chain());
    out.push_str(&counting_chain("rx"));
    out.push_str(&counting_chain("tx"));
    out.push_str(&probes::chains(table));
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::elements::tests::{config, elements, map};
    use super::*;
    use crate::model::host::Proto;

    fn golden_config() -> crate::model::host::HostConfig {
        let mut config = config();
        let mut guarded = map(7, Proto::Tcp, "192.0.2.1", 443, "10.7.1.2", 8443);
        guarded.allow = vec![
            "198.51.100.0/24".parse().unwrap(),
            "203.0.113.9/32".parse().unwrap(),
        ];
        config
            .maps
            .push(map(7, Proto::Tcp, "0.0.0.0", 8080, "10.7.1.2", 80));
        config
            .maps
            .push(map(8, Proto::Udp, "::", 53, "fd00:8::2", 5353));
        config
            .maps
            .push(map(7, Proto::Tcp, "127.0.0.1", 9000, "10.7.1.2", 80));
        config.maps.push(guarded);
        config.tuns[0].host = "tcp/22,udp/8000-8010".parse().unwrap();
        config.tuns[0].others = vec![
            "10.7.2.0/24".parse().unwrap(),
            "fd00:7:0:2::/64".parse().unwrap(),
        ];
        config.tuns[1].host = crate::model::host::HostPolicy::Open;
        config
    }

    #[test]
    fn the_ruleset_reads_as_written_down() {
        let (elements, failures) = elements(&golden_config());
        assert!(failures.is_empty(), "{failures:?}");
        let text = whole("byway_0123abcd", &elements, &Counters::default());
        // To accept a change: run with BYWAY_BLESS=1 and read the difference.
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/host/nft/golden.nft");
        if std::env::var_os("BYWAY_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, include_str!("golden.nft"));
    }

    #[test]
    fn rules_do_not_depend_on_the_configuration() {
        let tail = |text: &str| text.split_once("\tchain raw").map(|(_, t)| t.to_owned());
        let full = whole(
            "byway_0123abcd",
            &elements(&golden_config()).0,
            &Counters::default(),
        );
        let empty = whole("byway_0123abcd", &Elements::default(), &Counters::default());
        assert!(tail(&full).is_some());
        assert_eq!(tail(&full), tail(&empty));
    }

    #[test]
    fn every_element_belongs_to_a_set_of_the_table() {
        let delta = Elements::default().delta(&elements(&golden_config()).0);
        let names: Vec<String> = specs().into_iter().map(|s| s.name).collect();
        for (set, _) in delta.add {
            assert!(names.contains(&set), "{set}");
        }
    }
}
