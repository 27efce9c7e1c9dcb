//! For tests: a port that is read by a thread of its own, as the receiving thread of a daemon reads it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Options, Port, QuicSocket};

/// Datagrams that came, as they came.
pub(crate) type Received = Arc<Mutex<Vec<Vec<u8>>>>;

/// The QUIC half of a socket bound to `local`, and what comes there. The socket is closed soon after its last user has gone.
pub(crate) fn quic(local: SocketAddr) -> (Arc<QuicSocket>, Received) {
    let port = Port::bind(&[local], &Options::default()).unwrap();
    let (mut receiver, quic, received) = (
        port.receiver().unwrap(),
        port.quic().remove(0),
        Received::default(),
    );
    let all = received.clone();
    thread::spawn(move || {
        while let Ok(read) = receiver.next_batch() {
            read.for_each(drop);
            let came = (0..).map_while(|index| receiver.message(index));
            let datagrams = came
                .flat_map(|message| message.bytes.chunks(message.segment))
                .map(<[u8]>::to_vec);
            all.lock().extend(datagrams);
        }
    });
    let watched = Arc::downgrade(&quic);
    thread::spawn(move || {
        // The port has one of them itself.
        while watched.strong_count() > 1 {
            thread::sleep(Duration::from_millis(5));
        }
        port.close();
    });
    (quic, received)
}
