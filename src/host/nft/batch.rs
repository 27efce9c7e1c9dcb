//! Sends changes of port maps to the kernel by netlink, without the nft program.
//!
//! A change of one map is five elements. To start nft for it takes longer than the change, and its end longer still: the
//! kernel makes a socket that is closed wait until nothing of what was deleted is in use any more. So the socket stays open.
//!
//! Only elements of the sets of port maps, which have no intervals, in a batch that one message can carry: everything else
//! is nft's. Where the kernel refuses, nft says why.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::atom::{Atom, MapKey, Tuple};
use super::elements::Delta;
use super::run::OwnRuns;
use crate::model::host::Proto;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` (linux/netfilter/nfnetlink.h).
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`, and with it `NFT_MSG_NEWSETELEM` and `NFT_MSG_DELSETELEM` (linux/netfilter/nf_tables.h).
const NFTABLES: u16 = 10;
const ADD: u16 = NFTABLES << 8 | 12;
const DELETE: u16 = NFTABLES << 8 | 14;
/// `NLMSG_ERROR` (linux/netlink.h), which answers each message that asked for it.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`; with `NLM_F_ACK`; and with `NLM_F_CREATE` (linux/netlink.h).
const REQUEST: u16 = 1;
const REQUEST_ACK: u16 = 5;
const REQUEST_CREATE: u16 = 0x405;
/// `NFTA_SET_ELEM_LIST_TABLE`, `…_SET` and `…_ELEMENTS`.
const TABLE: u16 = 1;
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`, and in it `NFTA_SET_ELEM_KEY` and `NFTA_SET_ELEM_DATA`, each with one `NFTA_DATA_VALUE`.
const ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NFPROTO_INET`, the family of our table.
const INET: u8 = 1;
/// Elements in one message: the length of an attribute has 16 bits, and an element at most 90 bytes.
const IN_MESSAGE: usize = 500;
/// Longest batch: a socket may send so much at once without a larger buffer.
const LONGEST: usize = 160_000;

/// A batch of messages, each with a number by which its answer is known.
struct Batch {
    bytes: Vec<u8>,
    asked: u32,
}

impl Batch {
    /// Appends a message with `body` behind its two heads, `struct nlmsghdr` and `struct nfgenmsg`.
    fn message(&mut self, kind: u16, flags: u16, (family, resource): (u8, u16), body: &[u8]) {
        let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.asked.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }
}

/// Appends an attribute, filled up to four bytes. None where it is too long for one.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) -> Option<()> {
    let length = u16::try_from(value.len().checked_add(4)?).ok()?;
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Some(())
}

/// A key or value as the kernel has it: each field in network order, filled up to four bytes. None where one is no address,
/// protocol or port.
fn plain(tuple: &[Atom]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(24);
    for atom in tuple {
        match atom {
            Atom::Addr(IpAddr::V4(address)) => out.extend(address.octets()),
            Atom::Addr(IpAddr::V6(address)) => out.extend(address.octets()),
            Atom::Proto(Proto::Tcp) => out.extend([6, 0, 0, 0]),
            Atom::Proto(Proto::Udp) => out.extend([17, 0, 0, 0]),
            Atom::Port(port) => {
                out.extend(port.to_be_bytes());
                out.extend([0, 0]);
            }
            Atom::Net(_) | Atom::Ports(..) | Atom::Link(_) | Atom::Mac(_) | Atom::Family(_) => {
                return None;
            }
        }
    }
    Some(out)
}

/// An element as `NFTA_LIST_ELEM` has it.
fn element(out: &mut Vec<u8>, key: &Tuple, value: Option<&Tuple>) -> Option<()> {
    let mut body = Vec::with_capacity(80);
    for (kind, tuple) in [(KEY, Some(key)), (DATA, value)] {
        let Some(tuple) = tuple else { continue };
        let mut data = Vec::with_capacity(40);
        attribute(&mut data, VALUE, &plain(tuple)?)?;
        attribute(&mut body, kind | NESTED, &data)?;
    }
    attribute(out, ELEMENT | NESTED, &body)
}

/// Whether a set is one of those of port maps that have no intervals, and the key one of its.
fn is_of_maps(set: &str, key: &Tuple) -> bool {
    let kind = match set.split_once('_') {
        Some(("mapped" | "guarded" | "conn" | "rx" | "tx", kind)) => kind,
        None => set,
        Some(_) => return false,
    };
    let Some(key) = MapKey::parse(set, key) else {
        return false;
    };
    let (any, v4) = (key.listen.is_unspecified(), key.listen.is_ipv4());
    match kind {
        "any4" => any && v4,
        "any6" => any && !v4,
        "exact4" => !any && v4,
        "exact6" => !any && !v4,
        _ => false,
    }
}

/// The batch that makes the changes in `table`; none where it cannot be one.
fn batch(table: &str, delta: &Delta) -> Option<Batch> {
    let mut batch = Batch {
        bytes: Vec::new(),
        asked: 0,
    };
    batch.message(BEGIN, REQUEST, (0, NFTABLES), &[]);
    let gone = delta.delete.iter().map(|(set, keys)| {
        let entries = keys.iter().map(|key| (key, None)).collect();
        (DELETE, REQUEST_ACK, set, entries)
    });
    let come = delta.add.iter().map(|(set, entries)| {
        let entries = entries.iter().map(|(k, v)| (k, v.as_ref())).collect();
        (ADD, REQUEST_CREATE, set, entries)
    });
    for (kind, flags, set, entries) in gone.chain(come) {
        let entries: Vec<(&Tuple, Option<&Tuple>)> = entries;
        for some in entries.chunks(IN_MESSAGE) {
            let mut elements = Vec::new();
            for (key, value) in some {
                if !is_of_maps(set, key) {
                    return None;
                }
                element(&mut elements, key, *value)?;
            }
            let mut body = Vec::with_capacity(elements.len() + 64);
            attribute(&mut body, TABLE, &[table.as_bytes(), &[0]].concat())?;
            attribute(&mut body, SET, &[set.as_bytes(), &[0]].concat())?;
            attribute(&mut body, ELEMENTS | NESTED, &elements)?;
            batch.asked += 1;
            batch.message(kind, flags, (INET, 0), &body);
        }
        if batch.bytes.len() > LONGEST {
            return None;
        }
    }
    batch.message(END, REQUEST, (0, NFTABLES), &[]);
    (batch.asked > 0).then_some(batch)
}

/// How many messages of a datagram were taken.
fn taken(mut datagram: &[u8]) -> io::Result<u32> {
    let odd = || io::Error::from(io::ErrorKind::InvalidData);
    let mut taken = 0;
    while !datagram.is_empty() {
        let (length, kind) = match datagram {
            [a, b, c, d, e, f, ..] => (
                u32::from_ne_bytes([*a, *b, *c, *d]),
                u16::from_ne_bytes([*e, *f]),
            ),
            _ => return Err(odd()),
        };
        let length = usize::try_from(length).map_err(|_| odd())?.max(16);
        let number = datagram.get(16..20).and_then(|b| b.try_into().ok());
        match (kind, number.map(i32::from_ne_bytes)) {
            (ERROR, Some(0)) => taken += 1,
            (ERROR, Some(number)) => {
                return Err(io::Error::from_raw_os_error(number.saturating_neg()));
            }
            _ => return Err(odd()),
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(taken)
}

/// The socket by which batches are sent, in the network namespace it was opened in.
pub(super) struct Writer(Socket);

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    fn open() -> io::Result<Writer> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The answers are there when the batch was sent; they are not waited for.
        socket.set_non_blocking(true)?;
        Ok(Writer(socket))
    }

    fn send(&self, batch: &Batch) -> io::Result<()> {
        self.0.send(&batch.bytes, 0)?;
        let mut left = batch.asked;
        while left > 0 {
            let (datagram, _) = self.0.recv_from_full()?;
            left = left.saturating_sub(taken(&datagram)?);
        }
        Ok(())
    }
}

/// Makes the changes in `table` as one transaction, by `writer` or a new one, which is given back for the next; false where
/// they are not for this way or were refused, and nothing changed.
///
/// # Cancel safety
/// A dropped call may still make the changes, all or none.
pub(super) async fn send(
    table: &str,
    delta: &Delta,
    writer: &mut Option<Writer>,
    own: &Arc<OwnRuns>,
) -> bool {
    let Some(batch) = batch(table, delta) else {
        return false;
    };
    let (before, own) = (writer.take(), Arc::clone(own));
    let sent = tokio::task::spawn_blocking(move || {
        let writer = before.map_or_else(Writer::open, Ok)?;
        // The kernel names the thread behind a change.
        own.add(nix::unistd::gettid().as_raw().unsigned_abs());
        writer.send(&batch).map(|()| writer)
    });
    match sent.await {
        Ok(Ok(used)) => *writer = Some(used),
        Ok(Err(error)) => tracing::debug!(%error, "element changes refused by netlink"),
        Err(error) => tracing::debug!(%error, "element changes by netlink"),
    }
    writer.is_some()
}

#[cfg(test)]
mod tests {
    use super::super::elements::Elements;
    use super::super::elements::tests::{config, elements, map};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_map_is_one_batch_as_the_kernel_reads_it() {
        let (mut config, before) = (config(), elements(&config()).0);
        config
            .maps
            .push(map(7, Proto::Udp, "0.0.0.0", 53, "10.7.1.2", 5353));
        let delta = before.delta(&elements(&config).0);
        let batch = batch("byway_x", &delta).unwrap();
        assert_eq!(batch.asked, 5);
        let add = [
            &[12, 10][..],
            &[5, 4],
            // The sequence and port numbers, the family, the table.
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12, 0, 1, 0],
            b"byway_x\0",
            &[9, 0, 2, 0],
            b"any4\0\0\0\0",
            &[40, 0, 3, 128, 36, 0, 1, 128, 16, 0, 1, 128, 12, 0, 1, 0],
            &[17, 0, 0, 0, 0, 53, 0, 0, 16, 0, 2, 128, 12, 0, 1, 0],
            &[10, 7, 1, 2, 20, 233, 0, 0],
        ]
        .concat();
        if cfg!(target_endian = "little") {
            assert_eq!(batch.bytes[24..24 + add.len()], add);
        }
    }

    #[test]
    fn what_is_no_plain_element_of_a_map_is_left_to_nft() {
        let mut guarded = config();
        let mut map = map(7, Proto::Tcp, "192.0.2.1", 80, "10.7.1.2", 80);
        map.allow = vec!["198.51.100.0/24".parse().unwrap()];
        guarded.maps.push(map);
        let (none, all) = (Elements::default(), elements(&guarded).0);
        assert!(batch("t", &none.delta(&all)).is_none());
        assert!(batch("t", &elements(&config()).0.delta(&all)).is_none());
        assert!(batch("t", &none.delta(&none)).is_none());
    }

    proptest! {
        #[test]
        fn answers_never_panic(bytes in proptest::collection::vec(0u8..40, 0..120)) {
            let _ = taken(&bytes);
        }
    }
}
