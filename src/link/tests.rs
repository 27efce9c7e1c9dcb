use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::*;
use crate::model::view::View;
use crate::packet::Offload;
use crate::testing::pipe::{End, pipe};
use crate::wire::frame;
use futures::AsyncReadExt;

const SUBNET: SubnetId = SubnetId([1; 16]);
const PEER: PeerId = PeerId([2; 32]);
const KEY: Key = Key {
    subnet: SUBNET,
    peer: PEER,
};

fn via() -> Via {
    Via {
        transport: "memory",
        remote: "test".into(),
        below: None,
    }
}

fn send(links: &Links, fill: u8, length: usize) {
    let mut chunk = links.pool().take();
    chunk.space()[..length].fill(fill);
    chunk.commit(&Offload::NONE, length);
    links.send(&links.link(KEY), chunk);
}

/// Reads one packet frame, and what stands before it, and gives its first byte.
async fn next_packet(end: &mut End) -> u8 {
    loop {
        let mut header = [0; frame::HEADER_LEN];
        end.read_exact(&mut header).await.unwrap();
        let body = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize - 6;
        let mut bytes = vec![0; body];
        end.read_exact(&mut bytes).await.unwrap();
        if header[4] == 0 {
            return bytes[0];
        }
    }
}

/// Reads a stream to its end and hands on what comes.
fn collect(
    links: &Links,
    key: Key,
    connection: u64,
    stream: End,
) -> mpsc::UnboundedReceiver<(Key, Vec<u8>)> {
    let (collected, got) = mpsc::unbounded_channel();
    let mut stream = links.receive_stream(key, connection, stream).unwrap();
    tokio::spawn(async move {
        while let Some(mut packets) = stream.next_batch().await {
            while let Some((_, bytes)) = packets.next() {
                let _ = collected.send((key, bytes.to_vec()));
            }
        }
    });
    got
}

#[tokio::test]
async fn first_packets_wait_and_the_peer_is_wanted_once() {
    let (links, mut wanted) = Links::new(Handle::current(), None);
    for fill in 1..=3 {
        send(&links, fill, 100);
    }
    assert_eq!(wanted.try_recv(), Ok(KEY));
    assert!(wanted.try_recv().is_err(), "once a second at most");
    assert_eq!(links.status(KEY).via, None);
    let (ours, mut theirs) = pipe(100_000);
    links.carry_out(KEY, 1, via(), ours);
    for fill in 1..=3 {
        assert_eq!(next_packet(&mut theirs).await, fill);
    }
    assert_eq!(links.status(KEY).via, Some(via()));
}

#[tokio::test]
async fn newest_connection_carries_packets() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (first, mut old) = pipe(100_000);
    links.carry_out(KEY, 1, via(), first);
    send(&links, 1, 100);
    assert_eq!(next_packet(&mut old).await, 1);
    let (second, mut new) = pipe(100_000);
    links.carry_out(KEY, 2, via(), second);
    send(&links, 2, 100);
    assert_eq!(next_packet(&mut new).await, 2);
    assert_eq!(
        old.read(&mut [0]).await.unwrap(),
        0,
        "the former stream is closed"
    );
    let (third, mut late) = pipe(100_000);
    links.carry_out(KEY, 1, via(), third);
    assert_eq!(
        late.read(&mut [0]).await.unwrap(),
        0,
        "an older connection does not take over"
    );
    send(&links, 3, 100);
    assert_eq!(next_packet(&mut new).await, 3);
    assert_eq!(links.connection(KEY), Some(2));
    let (fourth, mut again) = pipe(100_000);
    links.drop_connection(PEER, 2);
    assert_eq!(links.connection(KEY), None);
    links.carry_out(KEY, 1, via(), fourth);
    send(&links, 4, 100);
    assert_eq!(
        next_packet(&mut again).await,
        4,
        "an older one serves when the newest is gone"
    );
}

/// Whatever a stream takes in front of a reader that reads nothing.
#[tokio::test]
async fn a_stream_that_nobody_reads_holds_little_and_the_rest_can_be_dropped() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (ours, _unread) = pipe(10_000_000);
    links.carry_out(KEY, 1, via(), ours);
    let (size, count) = (1400, 2000u64);
    for fill in 0..count {
        send(&links, fill as u8, size);
        tokio::task::yield_now().await;
    }
    until_still(&links).await;
    let held = links.status(KEY).streams.tx_bytes;
    assert!(
        (100_000..=128 * 1024).contains(&held),
        "{held} bytes are under way"
    );
    let lost = links.status(KEY).queue_drops;
    assert!(lost > count / 2, "{lost} of {count} dropped");
}

#[tokio::test]
async fn receipts_let_a_stream_go_on() {
    let (here, _wanted) = Links::new(Handle::current(), None);
    let (there, _wanted) = Links::new(Handle::current(), None);
    let ((out, far_in), (far_out, back)) = (pipe(50_000), pipe(50_000));
    here.carry_out(KEY, 1, via(), out);
    there.carry_out(KEY, 1, via(), far_out);
    let mut got = collect(&there, KEY, 1, far_in);
    let _receipts = collect(&here, KEY, 1, back);
    let began = std::time::Instant::now();
    for _ in 0..200 {
        (0..20).for_each(|_| send(&here, 1, 1400));
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    until_still(&here).await;
    let lost = here.status(KEY).queue_drops;
    let mut arrived = 0u64;
    while got.try_recv().is_ok() {
        arrived += 1;
    }
    assert_eq!(arrived + lost, 4000);
    assert!(arrived > 3000, "{arrived} of 4000 arrived");
    assert!(began.elapsed() < std::time::Duration::from_secs(3));
}

/// Waits until a link's stream takes nothing more.
async fn until_still(links: &Links) {
    let taken = || links.status(KEY).streams.tx_packets;
    loop {
        let before = taken();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        if taken() == before && before > 0 {
            return;
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_stalled_stream_gives_back_what_it_did_not_take() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (stalled, _never_read) = pipe(8);
    links.carry_out(KEY, 1, via(), stalled);
    send(&links, 1, 1000);
    tokio::task::yield_now().await;
    let (fresh, mut new) = pipe(100_000);
    links.carry_out(KEY, 2, via(), fresh);
    assert_eq!(next_packet(&mut new).await, 1);
}

#[tokio::test]
async fn stalled_queue_drops_oldest_and_counts() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (stalled, _never_read) = pipe(8);
    links.carry_out(KEY, 1, via(), stalled);
    for _ in 0..100 {
        send(&links, 1, 60_000);
    }
    let full = links
        .counts(SUBNET)
        .snapshot()
        .iter()
        .find(|(r, _)| *r == DropReason::QueueFull)
        .unwrap()
        .1;
    assert!(full > 70, "{full}");
    assert_eq!(links.status(KEY).queue_drops, full);
}

#[tokio::test]
async fn removed_member_is_cut() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (ours, mut theirs) = pipe(100_000);
    links.carry_out(KEY, 1, via(), ours);
    let (mut far, near) = pipe(100_000);
    let mut got = collect(&links, KEY, 1, near);
    use futures::AsyncWriteExt;
    far.write_all(&frame::packet_header(&Offload::NONE, 1))
        .await
        .unwrap();
    far.write_all(&[9]).await.unwrap();
    assert_eq!(got.recv().await, Some((KEY, vec![9])));
    let link = links.link(KEY);
    links.retain(&View::default());
    assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(got.recv().await, None, "the reader is gone");
    links.send(&link, {
        let mut chunk = links.pool().take();
        chunk.commit(&Offload::NONE, 10);
        chunk
    });
    assert!(
        links
            .counts(SUBNET)
            .snapshot()
            .contains(&(DropReason::NotMember, 1))
    );
    drop((link, links.link(KEY)));
    links.retain(&View::default());
    links.retain(&View::default());
    assert!(
        links.counts(SUBNET).snapshot().iter().all(|(_, n)| *n == 0),
        "a subnet that is gone leaves nothing"
    );
}

#[tokio::test]
async fn oversize_frame_cuts_the_stream() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let (mut far, near) = pipe(100_000);
    let mut got = collect(&links, KEY, 1, near);
    use futures::AsyncWriteExt;
    far.write_all(&[0xff; 100]).await.unwrap();
    assert_eq!(got.recv().await, None);
    assert!(
        links
            .counts(SUBNET)
            .snapshot()
            .contains(&(DropReason::Malformed, 1))
    );
}

#[tokio::test]
async fn probe_measures_the_data_path() {
    let (a, _) = Links::new(Handle::current(), None);
    let (b, _) = Links::new(Handle::current(), None);
    let other = Key {
        subnet: SUBNET,
        peer: PeerId([3; 32]),
    };
    assert_eq!(a.probe(KEY).await, Err(ProbeError::Offline));
    let (ab, ba) = pipe(100_000);
    let (back, forth) = pipe(100_000);
    a.carry_out(KEY, 1, via(), ab);
    let _at_b = collect(&b, other, 1, ba);
    b.carry_out(other, 1, via(), back);
    let _at_a = collect(&a, KEY, 1, forth);
    assert!(a.probe(KEY).await.is_ok());
    assert!(lock(&a.0.probes).is_empty());
    assert_eq!(
        b.status(other).carried().rx_packets,
        0,
        "a ping is no packet"
    );
}

#[tokio::test]
async fn a_probe_is_answered_when_the_way_back_is_there() {
    let (a, _) = Links::new(Handle::current(), None);
    let (b, _) = Links::new(Handle::current(), None);
    let other = Key {
        subnet: SUBNET,
        peer: PeerId([3; 32]),
    };
    let (ab, ba) = pipe(100_000);
    let (back, forth) = pipe(100_000);
    a.carry_out(KEY, 1, via(), ab);
    let _at_b = collect(&b, other, 1, ba);
    let _at_a = collect(&a, KEY, 1, forth);
    let probe = tokio::spawn({
        let a = a.clone();
        async move { a.probe(KEY).await }
    });
    // The answer is written by then, and has no stream yet.
    while lock(&b.link(other).state).queue.is_empty() {
        tokio::task::yield_now().await;
    }
    b.carry_out(other, 1, via(), back);
    assert!(probe.await.unwrap().is_ok());
}

#[tokio::test]
async fn readers_of_a_peer_are_bounded() {
    let (links, _wanted) = Links::new(Handle::current(), None);
    let link = links.link(KEY);
    let first = link.enter_reader(1).unwrap();
    let again = link.enter_reader(1).unwrap();
    assert!(
        first.is_cancelled() && !again.is_cancelled(),
        "one stream of a connection"
    );
    for connection in 2..=MAX_READERS as u64 + 1 {
        link.enter_reader(connection).unwrap();
    }
    assert!(again.is_cancelled());
    assert_eq!(lock(&link.state).readers.len(), MAX_READERS);
}
