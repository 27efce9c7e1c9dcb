//! byway: private IPs for containers and VMs, across peers.
//!
//! One line: **one replicated thing (the Record), one writer (the node), one immutable View. Packets, DNS, the kernel and
//! the command line all follow the View.** A pure core without I/O in the middle, thin shells around it, two traits.
//!
//! # The nouns
//!
//! | noun | what it is |
//! |---|---|
//! | [`model::record::Signed`] | the only replicated thing: a signed statement about a subnet (head, grant, revocation, registration, announcement, item), one merge rule |
//! | [`model::verified::Verified`] | a record that was checked, or signed here: its bytes, what they say and its digest, found out once and shared by state, store and peers |
//! | [`model::roll::Roll`] | who is a member and who has a say: a function of the set of records, without dates; decides who may speak control |
//! | [`model::state::State`] | pure machine over the records of every subnet; a command is decided on a copy, saved, then absorbed |
//! | [`model::view::View`] | what follows from the state, immutable, numbered: routes, members, zones, and what the kernel must match |
//! | [`model::host::HostConfig`] | what the kernel must match; `plan(desired, observed)` is the difference |
//! | [`link::Links`] | peers: the datagram path or the stream that carries packets to each, its bounded queue, its counters |
//! | [`peer::Peer`] | one peer: its sessions, one for each subnet in common, and the datagram paths they share; a pure machine with time as an argument |
//! | [`relay::Server`], [`relay::Leg`] | the two sides of a relay: the server forwards sealed frames between two peers, a leg is one peer's access to it; pure machines |
//! | [`lan::Lan`] | what is asked, told and believed on the local networks; a pure machine for all links |
//! | [`peer::session::Session`] | keys for one peer and subnet: pure machine, from the first handshake through every rekey |
//! | [`model::host::HostPolicy`] | what of a machine itself one subnet reaches beside ping and names |
//! | [`datapath::Datapath`] | the two packet loops between TUNs and links |
//! | [`portmap::Machine`] | which ports a router is asked to lead here, when again, and which are owed back; a pure machine, one for each of [`portmap::Routers`] |
//! | [`service`] | what peers ask each other: joins, records, sessions, relaying, clocks, measurements; one room for each protocol |
//! | [`service::Service`] | what members ask each other beside records, sessions and paths: kinds, handlers, and what each may ask |
//! | [`node::Node`] | owns state and store; every change goes decide, save, absorb, publish, tell; while it is saved the node only reads |
//! | [`command`] | what people ask, carried out: decided by the node in one call, waited for until the kernel has followed, taken back where it refuses |
//! | [`report`] | what is said of the state: status with its problems, why a path is not direct, netcheck, doctor, metrics, the log, systemd |
//!
//! # Glossary
//!
//! One word, one meaning.
//!
//! | word | what it means here |
//! |---|---|
//! | peer | another daemon, known by its public key ([`PeerId`](model::id::PeerId)); this one is the *node*, what it runs on the *machine* |
//! | member, admin, owner | a peer with a grant in a subnet; one that may grant and revoke; the one that founded it |
//! | neighbour | a member that this node stays connected to though nothing travels: everybody in a subnet of up to 32, a few in a larger one ([`model::neighbours`]); whoever is none is dialled when it is wanted, and *let go* when it is not used; in [`host`], as in rtnetlink, an entry of the kernel's table of ARP or NDP |
//! | idle, offline | what a member is that this node is not connected to: it is there as far as is known ([`model::presence`]); it was dialled in vain, or nobody has seen it for long |
//! | stranger | a peer that is connected, is no member of a subnet in common, and has nothing to do with relaying |
//! | relay | a peer that forwards for others; a *meeting point* is one that `transport.bootstrap` names; a *client* is a peer that is no member and that this node serves as a relay |
//! | reservation (place) | what a relay keeps for a node so that others reach that node through it (circuit relay v2) |
//! | circuit | a connection through a relay: it carries control, and packets only where UDP is blocked |
//! | relay notice, home relay | the item by which a member says whether it offers to forward, and which relays keep a place for it ([`model::notice`]); such a relay |
//! | relayed session, leg | a relay's pairing of two peers for their datagrams; the access of one of them to it, which has an index and a key |
//! | LAN peer | a peer that was heard of on a link of this machine; what is heard there is a hint where to dial |
//! | blinded name | a salt and its tag, by which who knows a subnet's ID recognises a member of it ([`crypto::blind`]) |
//! | subnet | one private network, known by its ID, the hash of its genesis; its *pools* are its prefixes |
//! | lease | a prefix of a pool that one member holds; its *block* is the lease it gets with its grant |
//! | workload | a container, VM or namespace with addresses of a lease, by its name |
//! | attachment | an interface of a container, by the names its engine has for the two: one workload |
//! | companions | the port maps and aliases that an engine asked for with a workload: they go with it |
//! | map | a port of the machine that leads to a workload or a member |
//! | router, port mapping, pinhole | the gateway of a default route; a port of it that leads to this machine ([`portmap`]), which peers know as a *mapped* address; a port of our own IPv6 address that its firewall lets in |
//! | record | a signed statement about a subnet; an *announcement* is what a member says of itself, an *item* one whose kind a version may not know |
//! | range | the records of a subnet whose digests begin with the same bits: two members compare what they hold by hashes of ranges ([`model::ranges`]) |
//! | connection, stream | libp2p's: a QUIC or TCP connection to a peer, and a stream inside one; a *data stream* carries the packets of one subnet |
//! | WebSocket, proxy | a TCP connection whose bytes travel in frames of RFC 6455, perhaps inside TLS, for networks that let little but HTTPS out; an HTTP proxy that connects for us (a *reverse proxy* stands in front of a server) |
//! | datagram, frame | a UDP datagram of ours; the sealed packets, or parts of one, in it (on a stream: one packet with its length) |
//! | receipt | what the reader of a data stream tells its writer: how far it has read ([`wire::frame`]) |
//! | session | the keys of one peer in one subnet; a *rekey* begins the session's next *epoch* (a relay's are *relayed sessions*) |
//! | path | a pair of addresses, ours and the peer's or a leg at a relay, over which datagrams were answered; *direct* without a relay |
//! | candidate | an address at which a peer may be reached by datagrams; a *spare* is one that has answered and is kept warm beside the path |
//! | spray, helper socket | a search for a port of a symmetric NAT that nobody can name; a further socket of the port, opened for it |
//! | helper | the process that enters namespaces for a daemon without the right to ([`helper`]) |
//! | carrier | what moves packets to a peer: datagrams or a data stream |
//! | link | one peer in one subnet as the packet loops see it: its carrier, queue and counters; in [`host`], as in rtnetlink, a network interface |
//! | port | the UDP port of the daemon, with its sockets, in [`udp`]; elsewhere a port number of TCP or UDP |
//! | caller | who begins a QUIC connection with the port: anybody, or only peers that are expected where the node listens nowhere |
//! | view | what follows from the state at one moment |
//!
//! # Dependency direction
//!
//! A module imports only from rows below its own; `tests/layering.rs` keeps it true.
//!
//! ```text
//! testing                                                           what tests share; nothing else reaches up to it
//! main
//! daemon                                                            build, run, stop
//! command                                                           what people ask, carried out
//! report                                                            what is said of the state
//! cli   engine
//! service                                                           what other peers ask
//! api::server   datapath
//! node
//! tun  tap  p2p  mdns  link  host  dns  store  config  portmap  api::{types,client}   one outside thing each; never import each other
//! udp  helper  device  fetch  file_watch             the port that link and p2p share; what takes more rights; TAPs; one HTTP answer;
//!                                                    when a file may say something else
//! peer, relay, lan -> wire -> crypto -> model -> packet, codec, text     no tokio, sockets, files, clock, randomness
//! ```
//!
//! # A packet, TUN to peer ([`datapath`], `outbound.rs`)
//!
//! 1. One read of the TUN fills a buffer; with segmentation offload it is up to 64 KB of one flow.
//! 2. The current View is taken once per batch. The TUN fixes the subnet, so equal prefixes never mix.
//! 3. The packet is parsed in place; [`SubnetView::route`](model::view::SubnetView::route) says whether our source may
//!    send it and where it goes: longest prefix, or an ICMP answer instead of silence.
//! 4. Where the peer has a datagram path ([`link::Route`]) that carries it ([`link::Framing`]) a super-packet is cut
//!    into frames that fit ([`packet::segment_plan`]), each sealed straight from the packet into the send buffer
//!    ([`link::Datagrams`]) and all handed to the kernel in one call; small packets that are there already share a
//!    frame. Where the path leads through a relay, the index of our leg stands in front of each frame ([`wire::relay`]).
//! 5. Else a run of packets is handed to the peer's bounded ring; when it is full its oldest goes. The peer's task writes
//!    the ring to a libp2p stream in large writes. The loop never waits for a peer. No more is written than the line carries in
//!    a round trip and a little more, as receipts of the peer show; what has waited too long in the ring is dropped at its
//!    head, so that TCP inside sees loss and not seconds of delay.
//!
//! # A packet, peer to TUN ([`datapath`], `inbound.rs`)
//!
//! 1. One thread pulls from the UDP port ([`link::FrameReceiver`]). On the way [`udp`] gives QUIC, screened, to libp2p;
//!    frames that this node relays go on to the other leg unopened ([`relay::Server`]); our
//!    frames are opened to the end of the super-packet that grows in one buffer, replays dropped. Or a task pulls from the
//!    stream ([`link::StreamReceiver`]), whose frames are decoded; nothing is allocated by a length the sender states. Both
//!    are read always.
//! 2. [`SubnetView::admit`](model::view::SubnetView::admit): the source must be leased to that member in that subnet, the
//!    destination ours. Every refusal is counted by its reason.
//! 3. The receiver itself says what its kernel is left to do, from the packet it checked, and writes the super-packet in
//!    one piece.
//!
//! # A datagram path
//!
//! Keys are agreed over `/byway/control/1` between authenticated members, so that no stranger's datagram ever reaches a
//! Diffie-Hellman, and renewed inside the live session ([`peer::session`]). Authenticated probes find an address that
//! answers and what size it carries ([`peer::path`]): once per peer, whatever number of subnets it shares with us, under the
//! keys of all of them in turn ([`peer`]). The control task ([`link::direct`]) gives each [`peer::Peer`] time and random
//! bytes and publishes what comes out as the routes of its links; when probes stop being answered, or packets stop arriving
//! although they are, the spare takes over, and without one packets are back on the stream. Frames leave from the address the peer sends to, and how much the port keeps for a late receiving thread follows
//! the round trip of who sends. [`wire::datagram`] is the format.
//!
//! Both ends tell each other where they may be reached and what stands before them ([`wire::paths`]), and begin to probe at
//! one moment. Where one NAT is symmetric and the other lets in only what it has sent to, a port is searched for
//! ([`peer::spray`]). From the same facts of both ends [`report`] names the reason why a path is not direct.
//!
//! # Through a relay
//!
//! A node that names relays holds reservations at up to two of them; its addresses through them stand in invites and
//! announcements, and its records name them as its home relays. One that cannot reach a member holds reservations at
//! relays that nobody configured there as well: at members, and at the home relays of others, so that one node with a relay
//! teaches the whole subnet. A peer that has no other address is dialled there by a circuit, which carries control. Over it the end
//! with the smaller peer ID asks relays for a relayed session and tells the other its leg ([`service`], `relay.rs`); each
//! end binds its leg ([`relay::Leg`], [`wire::relay`]), and the leg is a candidate as any address is. A path that is direct
//! replaces it as soon as one answers; then QUIC is dialled over the same hole, and the circuit closes. Where UDP is blocked
//! at one end, the circuit carries the data streams as well ([`p2p`]).
//!
//! # On a local network
//!
//! Members ask each link who else is there, and answer ([`lan`]): in multicast DNS ([`mdns`]), whose names mean nothing to who
//! does not know the subnet's ID. What is heard goes to [`p2p`] as hearsay of that link, and joins are told of it. Link-local
//! IPv6 addresses are dialled with their link's name (`/ip6zone/LINK/ip6/…`), and datagrams follow with its index as scope.
//!
//! # A large subnet
//!
//! Above 32 members a connection to everybody costs too much. Each holds its neighbours ([`model::neighbours`]): both ends reckon
//! alike from the list of members, so that the graph is connected whoever is away, and records spread over it. Packets,
//! requests and people have anybody else dialled; when neither end has used the connection for ten minutes, whoever notices
//! first lets go, and the datagram session ends with it. Members tell their neighbours once a minute when they last saw each
//! member ([`model::presence`]), so that everybody knows who is there. Whoever may renew a grant that ends unless its member is
//! seen asks that member before ([`service`], `attend.rs`).
//!
//! # Where little but HTTPS is let out
//!
//! Where little but HTTPS is let out, a peer or a relay is met inside a WebSocket, perhaps through an HTTP proxy: the last
//! rung of the ladder, on which connections, circuits and data streams run as over plain TCP ([`wire::websocket`],
//! [`model::proxy`], and `web` in [`p2p`]).
//!
//! # A command
//!
//! `cli` -> [`api::client`] -> HTTP+JSON on the unix socket -> [`api::server`] (peer credentials) -> `command` -> one
//! typed call of [`node::Node`]: decide on a copy of the subnet -> [`store`] commits (synced, beside the thread) -> absorb
//! -> publish the View -> tell the other members. [`host::reconcile`] wakes, observes, plans, applies, and publishes what
//! failed; the command waits for that, so it never says "ok" for what the kernel refused, and takes it back. One path
//! serves start, reload, repair, crash recovery and stop: add before delete, and only what bears our mark is deleted.
//!
//! # The configuration
//!
//! [`config`] reads it whole, and refuses what is wrong; what is accepted and nobody reads is named
//! ([`config::Config::idle`]). A running daemon keeps what it was started with for the keys that need a restart, and beside it
//! what is in force for those that `reload` takes over ([`config::keys::LIVE`]); `[[subnet]]` tables are joined and left by the
//! same commands that a person types (`command/reload.rs`). systemd is told when both hold (`report/notify.rs`).
//!
//! # What passes the kernel
//!
//! An accept of ours cannot overrule anybody's drop. So rules for our links stand in Docker's chain for others and in a
//! zone of firewalld, marked and journalled; whoever stops our packets all the same is found by probes of our own, and
//! named with one remedy ([`host::Rules::blocked`]).
//!
//! One nftables table, whose rules never change ([`host::nft`]): only its elements do. Into workloads pass members of their
//! subnet and what a port map asked for. The machine itself answers its subnets ping, names, what its
//! [`HostPolicy`](model::host::HostPolicy) lists, and what a map listens on; the judgement is by the port that was asked for,
//! whoever translated it. What is no longer listed is ended: its sockets on this machine, its entries in conntrack, and
//! a later segment, which begins no connection, is answered with a reset. Refusals are answered, counted by subnet, and
//! heard by the asker's datapath, which tells people. A link that forwards only because of us
//! ([`model::host::Barred`]) is shut to everything else, from before its switch is turned until after it is back; what was
//! turned is remembered on disk (`host/journal.rs`), so that a kill changes nothing.
//!
//! Members and workloads share the kernel's table of connections with everybody else: how many each may begin is a rate in
//! the ruleset, and who holds more than its share of half of the table ([`model::host::Crowd`]) begins nothing until it holds
//! less.
//!
//! Our routing rules stand before every other program's, moved there when one comes later (`host/rules.rs`); of a network
//! inside a pool only what members hold is ours ([`HostConfig::overlay`](model::host::HostConfig::overlay)). What cannot be
//! had so is a [`Finding`](model::host::Finding), and a problem in `status`.
//!
//! # A message of a peer
//!
//! Whatever peers do arrives as one event of [`p2p`]; `service/dispatch.rs` gives it to the protocol it belongs to.
//!
//! The connection that carries it pays first, for its place and its bytes (`service/inbox.rs`). A large push is cut into
//! pieces. Signatures are checked beside the node's thread, a piece at a time for each peer; then the piece has its turn
//! there (`node/turns.rs`): own commands and removals go first, then peers in fair turns, then timers. Only now is the
//! issuer of a record charged, for what is really new. What is new is saved together with what else came within 50 ms,
//! beside the thread (`node/saver.rs`): meanwhile it answers what only reads, and whatever decides waits. The View that
//! follows is built beside the thread, too, and with it the others are told. It shares with the View before what did not
//! change: an announcement makes its member's part anew ([`model::resolve`], [`model::build`]), in maps whose copies
//! share what they have in common ([`model::chunks`]).
//!
//! What a node hears it passes on once, to a few members that have not told it the same; its own words go to everybody it
//! is connected to. What a push missed is found by comparing, with one member after the other ([`model::spread`]). Of a
//! subnet with many records only the ranges that differ are looked at ([`model::ranges`], [`wire::ranges`]), so that a
//! thousand members agree within seconds and a comparison of equal sets costs one hash.
//!
//! # A question of a member
//!
//! Whatever members ask each other beside records, sessions and paths is a kind of `/byway/service/1` ([`wire::service`]):
//! [`service::requests`] names one handler for it, gives each peer a bucket, bounds what runs, and runs no request twice.
//! One of a kind that nobody here knows is answered with that, so that members of two versions get along; so does a record
//! of a kind that nobody here knows, which is held and passed on ([`model::items`]). Which versions a member speaks is in
//! the line that libp2p's identify carries ([`wire::agent`]); `status` says where two have none in common.
//!
//! # Joining
//!
//! A peer that has no valid grant in a common subnet is a stranger: it is offered `/byway/join/1` and nothing else. One that
//! is a relay of ours, or that we relay for, is offered the relay's protocols in its place (see [`p2p`]). [`wire::control`] has the messages; [`model::join`] the invite and the signed question; `node::admission`
//! decides, and [`model::admitted`] says what who is let in has to be told; any member passes a question on to who may
//! decide. A question that a person takes back is withdrawn there, too (`service/join/withdraw.rs`). Before it asks, a
//! joiner learns the genesis, whose hash the ID is, and judges what its founder wants of this machine ([`model::policy`]).
//!
//! # Whose word it is
//!
//! What a person types is done as it stands; what anybody else says is judged. [`model::find`] says which object a text
//! means, [`model::heard`] which addresses are dialled on hearsay ([`p2p::Typed`], [`p2p::Heard`]).

// The fuzz targets stand outside the crate, and are run by its tests (`testing/fuzz.rs`): these are the names they use.
#[cfg(test)]
extern crate self as byway;
#[cfg(test)]
extern crate self as libfuzzer_sys;
#[cfg(test)]
pub(crate) use testing::fuzz::fuzz_target;

pub mod api;
pub mod backoff;
pub mod cli;
pub mod codec;
pub mod command;
pub mod config;
pub mod crypto;
pub mod daemon;
pub mod datapath;
mod device;
pub mod dns;
pub mod engine;
mod fetch;
mod file_watch;
pub mod helper;
pub mod host;
pub mod lan;
pub mod limit;
pub mod link;
pub mod mdns;
pub mod model;
pub mod node;
pub mod p2p;
pub mod packet;
pub mod peer;
pub mod portmap;
pub mod relay;
pub mod report;
pub mod service;
pub mod store;
mod tap;
#[doc(hidden)]
pub mod testing;
pub mod text;
pub mod tun;
pub mod udp;
pub mod wire;
