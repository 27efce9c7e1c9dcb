//! Sealed datagrams between two members of a subnet: the format of the fast path, whole.
//!
//! This text, `crypto::frame`, `crypto::handshake` and `peer::session` are what a second implementation needs.
//! All numbers are big-endian; "must be zero" is checked by the receiver. Every rule for receivers also protects against a
//! member who lies: nothing the sender states is believed before it agrees with the bytes.
//!
//! # On the port
//!
//! One UDP port carries everything; the first byte of a datagram tells what it is (RFC 9443):
//!
//! ```text
//! 0x00-0x03   left to STUN: dropped
//! 0x04        a sealed frame, as below
//! 0x05, 0x06  for a relay or from one: see `wire::relay`
//! 0x07        a knock, as below;  0x08-0x3f reserved: dropped
//! 0x40-0xff   QUIC (fixed bit set), for libp2p
//! ```
//!
//! One datagram is one frame. It is never cut by IP: DF is set, and the sender learns by probes what the path carries.
//!
//! # Keys
//!
//! A session is between two peers in one subnet; the same two peers have another one for each subnet they share. The first
//! handshake goes over their libp2p stream (`/byway/control/1`), later ones inside the session:
//!
//! ```text
//! smaller peer ID                       greater peer ID
//!        |  <---- Want: asks for what follows |           over the stream
//!        |  Offer: version, ML-KEM-768 key -> |
//!        |  <-------- Accept: its ciphertext  |
//!        |  Begin: Noise message 1 ---------> |           both messages of Noise IKpsk2 name the index
//!        |  <------- Finish: Noise message 2  |           that their sender will receive by
//!        |====================================|
//!        |  sealed frames, both ways          |           datagrams
//!        |  Control: Rekey                    |           the next handshake, begun by either
//! ```
//!
//! Messages, times and who may begin: `peer::session`. Hashes, pre-shared keys and the two keys that come out, one for
//! each direction: `crypto::handshake`. There is no handshake by bare datagrams, so a datagram under an unknown index is
//! never answered.
//!
//! # Frame
//!
//! ```text
//! 0      1            4                8                  16            n-16   n
//! +------+------------+----------------+------------------+-------------+-----+
//! | 0x04 | 0 0 0      | receiver index | counter          | ciphertext  | tag |
//! +------+------------+----------------+------------------+-------------+-----+
//! |<------------- header, 16 bytes, in clear ------------>|<- of the plaintext ->
//! ```
//!
//! `receiver index` is what the receiver chose in the handshake: it names session and key. `counter` is the number of the
//! frame under that key, from 0; gaps are allowed, a number is never used twice. AEAD (AES-256-GCM or ChaCha20-Poly1305, as
//! agreed): nonce = 4 zero bytes and the counter, additional data = the 16 bytes of the header, tag = 16 bytes.
//!
//! # Plaintext
//!
//! The body, and behind it 8 bytes of trailer ([`Trailer`]). What a frame adds to its body is [`OVERHEAD`], 40 bytes; to
//! the datagram's size IP and UDP add 28 (IPv4) or 48 (IPv6).
//!
//! ```text
//! 0                 n-8     n-7      n-6       n-5    n-4      n-2     n
//! +-----------------+-------+--------+---------+------+--------+-------+
//! | body            | kinds | header | segment | last | size   | id    |
//! |                 |       | length | index   |      |        |       |
//! +-----------------+-------+--------+---------+------+--------+-------+
//!
//! kinds   body                                                       other fields
//! 0x10    one packet, complete                                       must be zero
//! 0x11    one packet, its TCP or UDP checksum to be computed         must be zero
//! 0x20    a bundle of small packets                                  must be zero
//! 0x32    a segment of a super-packet: TCP over IPv4                 used
//! 0x33                                 TCP over IPv6                 used
//! 0x34                                 UDP over IPv4                 used
//! 0x35                                 UDP over IPv6                 used
//! 0x40    a control message                                          must be zero
//! 0x50    a filler                                                   must be zero
//! ```
//!
//! The high half of `kinds` is the frame's kind, the low half is [`Kind`](crate::packet::offload::Kind). Frames of any other value are dropped, so that a
//! later version may use them where both ends know of it.
//!
//! ## One packet
//!
//! An IPv4 or IPv6 packet, exactly as long as its header says. With 0x11 the field of the TCP or UDP checksum is to be
//! ignored (0x11 for any other packet: drop it). The receiver computes the checksum or hands the packet to a kernel that
//! will: the AEAD has protected the bytes on the way.
//!
//! ## A bundle
//!
//! Packets one behind the other, each behind four bytes. A sender bundles what is queued already and waits for nothing.
//!
//! ```text
//! 0        2       3   4           4+length
//! +--------+-------+---+-----------+--------+-------+---+---- ...
//! | length | flags | 0 | packet    | length | flags | 0 |
//! +--------+-------+---+-----------+--------+-------+---+---- ...
//! ```
//!
//! `length` counts the packet's bytes, at least 20. Bit 0 of `flags` says that the checksum is to be computed; the other
//! bits and the fourth byte must be zero. At the first entry that is wrong the receiver drops the rest of the bundle; what
//! came before it counts.
//!
//! ## A segment of a super-packet
//!
//! A kernel with segmentation offload hands over TCP segments or UDP datagrams of one flow as one super-packet: headers,
//! and up to 64 KB of payload. Its payload is cut into segments of `size` bytes, the last may be shorter (1 to `size`);
//! each travels in a frame of its own, the payload first and the super-packet's headers, unchanged, behind it:
//!
//! ```text
//! 0           p                p + header length
//! +-----------+----------------+---------+
//! | payload   | IP, TCP or UDP | trailer |
//! +-----------+----------------+---------+
//! ```
//!
//! `header length` counts IP header, options, extension headers and the TCP header with its options, or the UDP header; 255
//! at most. `segment index` is from 0, `last` the index of the last segment. For UDP `size` is the payload of one datagram;
//! for TCP the sender may choose it smaller than its kernel asked for, so that a frame fits the path. `id` is a number that
//! the sender changes with every super-packet. IP length, IPv4 header checksum, UDP length and transport checksum in those
//! headers are of no meaning.
//!
//! Segment *i* is the packet of these headers and its payload with
//! - the IP length that follows, and in IPv4 the identification plus *i* (modulo 2^16) and a new header checksum;
//! - TCP: sequence number plus *i* * `size` (modulo 2^32); FIN and PSH cleared but in the last segment, CWR but in the
//!   first;
//! - UDP: the length that follows;
//! - the checksum of TCP or UDP computed.
//!
//! A receiver may write each segment so, by itself. Better, it joins a *run*: frames that it opened one directly after the
//! other, with equal `kinds`, `header length`, `last`, `size` and `id`, and indices that follow each other. The payloads of
//! a run behind the headers of its first segment are a super-packet again: identification and sequence number as of the
//! first segment, FIN and PSH if the last segment is in it, CWR if the first is, segment size `size`. Since the payload
//! comes first, each frame can be opened to the end of the payload before it, over that one's headers and trailer. A lost
//! frame ends a run and costs its own segment only. [`Segment`](crate::packet::reassemble::Segment) and
//! [`reassemble`](crate::packet::reassemble) do this.
//!
//! A segment must be dropped when
//! - `segment index` > `last`, or `size` is 0, or `header length` + `last` * `size` is above 65,574;
//! - its payload has not `size` bytes (in the last segment: not 1 to `size`), or the body is shorter than `header length`;
//! - IP version, protocol or the end of the TCP or UDP header in the headers are not what `kinds` and `header length` say,
//!   or they are those of a fragment;
//! - joined, it would make more than an IP packet can hold (65,535 bytes; with IPv6, behind its header), or less than 8
//!   bytes (TCP) in a segment, or more than 128 datagrams (UDP).
//!
//! ## A control message
//!
//! ```text
//! 0   1                9
//! +---+----------------+                                        Probe
//! | 1 | token          |
//! +---+----------------+------+--------+---------------+---------+
//! | 2 | token          | port | family | address       | arrived |   Answer: family 4 or 6, address of 4 or 16 bytes,
//! +---+--------+-------+------+--------+---------------+---------+           count of 8 bytes
//! | 3 | length | message                                        Rekey: length in 2 bytes, see `peer::session`
//! +---+--------+----------
//! | 4 |                                                         Close
//! +---+------+
//! | 5 | word |                                                  Spray: 1 Ask, 2 Go, 3 Later
//! +---+------+--------+---------+
//! | 6 | port | family | address |                               Renewed
//! +---+------+--------+---------+
//! +---+------+-------+
//! | 7 | word | token | ...                                      Knock: 1 Expect, 2 Seen and an address, 3 Ask, whether from
//! +---+------+-------+                                          another port (0 or 1) and an address, 4 Sent,
//!                                                               5 Refused and why (1 too often, 2 the address is not
//!                                                               the asker's, 3 the asker is not seen, 4 not sent)
//! ```
//!
//! Zeros may follow, up to the end of the body: padding. A probe is padded to make its datagram as large as what it asks
//! the path about; whatever its size, it is answered by an unpadded answer with its token, sent to the address that the
//! probe came from. The answer names that address, and counts the frames with packets that were opened under the probe's key
//! so far, so that a path which answers and lets no packets through can be left. An answer proves that its path works both
//! ways, and that datagrams of the probe's size arrive. A peer whose frames begin to come from another address is probed there before it is sent more
//! than three times what came from there. A path belongs to the two peers, not to one of their sessions: its probes may go
//! in frames of any of them, and each is answered in a frame of the session it came in. A session's packets take the path
//! only after a probe in one of its own frames was answered. Close: the sender has dropped the session's keys. Spray: the two
//! agree on a search for a port that nobody can name, see `peer::spray`. Knock: the two agree on a knock, see `peer::knock`. Renewed: the sender leaves a mapping before its NAT
//! ends it, for the one by which this message comes; the address is where an answer said that it is seen by that one. A
//! receiver who sees another address ignores it; else one answered probe to there moves what it sends.
//! Messages of other kinds, too short, or padded with anything but zeros are dropped.
//!
//! ## A filler
//!
//! Four bytes, the number of a measurement's round, then zeros up to the size that is measured. A receiver counts those of
//! the round that it agreed to ([`kind::MEASURE`](super::service::kind::MEASURE)), and drops them and all others.
//!
//! # A knock
//!
//! ```text
//! 0      1       4       12
//! +------+-------+-------+
//! | 0x07 | 0 0 0 | token |
//! +------+-------+-------+
//! ```
//!
//! A datagram of these 12 bytes, unsealed. It tells nothing but that it came, and from where. Who expects its token, which the
//! two ends agreed on in control messages, takes it once; any other is dropped. It is never answered to where it came from.
//!
//! # What a receiver does, in this order
//!
//! 1. First byte, reserved bytes, at least 40 bytes in all, a known index: else drop.
//! 2. The counter must not have been seen, nor be 8192 or more behind the newest: else drop.
//! 3. Open. A frame that does not open changes nothing but a statistic.
//! 4. Only now the counter is marked as seen, and only now a newer counter than any before may move the peer's address.
//! 5. Trailer and body, as above.
//! 6. Every packet that comes out: exactly as long as its IP header says, its source leased in this subnet to this peer, its
//!    destination ours; else drop. Then it is written.
//!
//! A receiver answers nothing but control messages, and tells the sender of no drop.

mod bundle;
mod control;
mod knock;
mod trailer;

pub use bundle::{Bundle, ENTRY, append};
pub use control::{Control, MAX_CONTROL, Spray};
pub use knock::{KNOCK_BYTES, Knock, Refusal, knock, token_of};
pub use trailer::{Trailer, split};

/// Bytes of the trailer, the last of every plaintext.
pub const TRAILER: usize = 8;
/// Bytes a frame adds to its body: the clear header (16), the trailer and the tag (16).
pub const OVERHEAD: usize = 16 + TRAILER + 16;

#[cfg(test)]
mod tests;
