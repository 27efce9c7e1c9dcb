//! Helper sockets: opened while the reader waits, read beside the port's own, closed without loss to others.

use super::*;

/// Where a helper is.
fn at(port: &Port, helper: u16) -> SocketAddr {
    port.0.helpers.load()[&helper].local
}

fn run(length: usize, to: SocketAddr, helper: Option<u16>) -> Run {
    Run {
        start: 0,
        end: length,
        segment: 10,
        to,
        local: None,
        helper,
    }
}

/// What came by which helper, of `count` datagrams of ours.
fn came(receiver: &mut Receiver, count: usize) -> Vec<(Option<u16>, SocketAddr, u8)> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = receiver.next_batch().expect("datagrams are missing");
        all.extend(batch.map(|d| (d.helper, d.from, d.bytes[1])));
    }
    all
}

#[test]
fn a_helper_opened_while_the_reader_waits_is_read_and_sends_from_a_port_of_its_own() {
    let (here, there) = (port(&[V4, V6]), port(&[V4]));
    let _guards = (guard(&here), guard(&there));
    let mut receiver = here.receiver().unwrap();
    let (tell, told) = mpsc::channel();
    let reading = thread::spawn(move || {
        tell.send(()).unwrap();
        came(&mut receiver, 3)
    });
    told.recv().unwrap();
    thread::sleep(Duration::from_millis(50));
    let helpers = [here.open_helper().unwrap(), here.open_helper().unwrap()];
    assert_ne!(helpers[0], helpers[1]);
    let (own, by) = (address(&here), helpers.map(|helper| at(&here, helper)));
    for (n, to) in [(1, by[0]), (2, own), (3, by[1])] {
        there.send_one(&[4, n], to, None).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let from = address(&there);
    let expected = [
        (Some(helpers[0]), from, 1),
        (None, from, 2),
        (Some(helpers[1]), from, 3),
    ];
    assert_eq!(reading.join().unwrap(), expected);
    // And back, in one call or in many.
    let mut back = there.receiver().unwrap();
    let mut sender = here.sender();
    let sent = sender.send(&[4; 30], &[run(30, from, Some(helpers[1]))]);
    assert_eq!(sent, Sent::default());
    let heard = collect(&there, &mut back, 3);
    assert!(heard.iter().all(|(source, ..)| *source == by[1]));
    here.send_one_by(Some(helpers[0]), &[4], from, None)
        .unwrap();
    assert_eq!(collect(&there, &mut back, 1)[0].0, by[0]);
}

#[test]
fn one_that_is_closed_takes_nothing_with_it() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let _guard = guard(&here);
    let mut receiver = here.receiver().unwrap();
    let helpers: Vec<u16> = (0..40).map(|_| here.open_helper().unwrap()).collect();
    // Something waits in each of them.
    for helper in &helpers {
        there.send_one(&[4, 1], at(&here, *helper), None).unwrap();
    }
    let kept = helpers[17];
    let addresses: Vec<SocketAddr> = helpers.iter().map(|h| at(&here, *h)).collect();
    here.retain_helpers(|helper| helper == kept);
    let found = came(&mut receiver, 1);
    assert_eq!(found, [(Some(kept), address(&there), 1)]);
    // A former one is neither read nor sent by, and its number is not given again soon.
    there.send_one(&[4, 2], addresses[0], None).ok();
    there.send_one(&[4, 3], at(&here, kept), None).unwrap();
    assert_eq!(came(&mut receiver, 1)[0].2, 3);
    let gone = Some(helpers[0]);
    let refused = here.send_one_by(gone, &[4], address(&there), None);
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    let sent = here
        .sender()
        .send(&[4; 20], &[run(20, address(&there), gone)]);
    assert_eq!(sent.frames_dropped, 2);
    assert!(!helpers.contains(&here.open_helper().unwrap()));
}

#[test]
fn there_are_so_many_at_most_and_no_quic_passes_them() {
    let (here, there) = (port(&[V4]), port(&[V4]));
    let _guard = guard(&here);
    let mut receiver = here.receiver().unwrap();
    let helpers: Vec<u16> = std::iter::from_fn(|| here.open_helper().ok()).collect();
    assert_eq!(helpers.len(), MAX_HELPERS);
    let full = here.open_helper().unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
    for helper in &helpers {
        let to = at(&here, *helper);
        there.send_one(&[0xc0; 40], to, None).unwrap();
        there.send_one(&[4, 9], to, None).unwrap();
    }
    // What is a relay's is shown to it only from the port's own sockets.
    let mut relay = Everything::default();
    let mut all = BTreeMap::new();
    while all.len() < helpers.len() {
        for datagram in receiver
            .next_batch_past(|| true, |run| relay.take(run))
            .unwrap()
        {
            *all.entry(datagram.helper).or_insert(0) += 1;
        }
    }
    assert!(all.values().all(|count| *count == 1));
    let taken = relay.taken.len();
    assert_eq!((taken, here.counts().foreign), (0, MAX_HELPERS as u64));
}
