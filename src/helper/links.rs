//! Whether a namespace has a link of ours, by the mark that the daemon gives each.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How the alias of every link of ours begins.
const MARK: &str = "byway:";
/// Messages of the kernel that are read at most: a namespace may have any number of links.
const MOST: usize = 256;
/// Room for one message of a listing; the kernel makes none longer.
const ROOM: usize = 32 * 1024;

/// Whether the calling thread's namespace has a link of ours.
///
/// # Errors
/// When the kernel does not list its links.
pub(super) fn has_own() -> io::Result<bool> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let ask = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut ask = NetlinkMessage::from(ask);
    ask.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    ask.finalize();
    let mut bytes = vec![0; ask.buffer_len()];
    ask.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    for _ in 0..MOST {
        let mut bytes = Vec::with_capacity(ROOM);
        socket.recv(&mut bytes, 0)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                    if is_own(link) =>
                {
                    return Ok(true);
                }
                NetlinkPayload::Done(_) => return Ok(false),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Each message begins at a multiple of four bytes (netlink(7)).
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            let length = length.next_multiple_of(4).max(4).min(rest.len());
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    Ok(false)
}

fn is_own(link: &LinkMessage) -> bool {
    let marked = |a: &LinkAttribute| matches!(a, LinkAttribute::IfAlias(t) if t.starts_with(MARK));
    link.attributes.iter().any(marked)
}
