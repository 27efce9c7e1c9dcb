//! Where clients come in: accepts them, waits while the kernel gives no more, and makes the socket file again where it has gone.

use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, warn};

use super::socket::{Listener, bind};
use super::users::Users;
use crate::api::types::Error;
use crate::backoff::Accepting;

/// How often it is looked whether the socket file is there.
const LOOK: Duration = Duration::from_secs(2);

/// An open socket.
pub(super) struct Entrance {
    listener: Listener,
    /// Who is let in beside the owner and the group of each file that is made.
    users: Users,
    accept: UnixListener,
    accepting: Accepting,
    /// When it is accepted again after a failure.
    next: Instant,
    look: Interval,
    /// The file is being made again.
    made: Option<JoinHandle<Result<Listener, Error>>>,
    /// That it could not be made was said, and holds still.
    is_refused: bool,
}

impl Entrance {
    /// # Errors
    /// Where the listener cannot be given to the runtime.
    pub fn new(listener: Listener, users: Users) -> std::io::Result<Entrance> {
        users.open(listener.path());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Entrance {
            accept: listener.to_tokio()?,
            listener,
            users,
            accepting: Accepting::default(),
            next: Instant::now(),
            look,
            made: None,
            is_refused: false,
        })
    }

    /// The next client.
    ///
    /// # Cancel safety
    /// Dropped before there is one, nothing is lost.
    pub async fn accept(&mut self) -> UnixStream {
        loop {
            let is_idle = self.made.is_none();
            let accepted = async {
                sleep_until(self.next).await;
                self.accept.accept().await
            };
            let made = async {
                match &mut self.made {
                    Some(made) => made.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, _)) => {
                        self.accepting.accepted();
                        return stream;
                    }
                    // Out of descriptors: those there are come free as clients leave.
                    Err(error) => {
                        let (pause, is_said) = self.accepting.failed(std::time::Instant::now());
                        if is_said {
                            warn!(%error, "accept on the control socket");
                        }
                        self.next = Instant::now() + pause;
                    }
                },
                made = made => {
                    self.made = None;
                    match made {
                        Ok(made) => self.take(made),
                        Err(error) => debug!(%error, "make the control socket again"),
                    }
                }
                _ = self.look.tick(), if is_idle => {
                    if self.listener.is_gone() {
                        let path = self.listener.path().to_owned();
                        // It may wait for another daemon that makes its own there.
                        self.made = Some(tokio::task::spawn_blocking(move || bind(&path)));
                    } else {
                        self.is_refused = false;
                    }
                }
            }
        }
    }

    /// Goes on with the socket that was made in the place of the former one.
    fn take(&mut self, made: Result<Listener, Error>) {
        let path = self.listener.path().display().to_string();
        let opened = made
            .map_err(|error| error.to_string())
            .and_then(|listener| {
                let accept = listener.to_tokio().map_err(|error| error.to_string())?;
                Ok((listener, accept))
            });
        match opened {
            Ok((listener, accept)) => {
                self.users.open(listener.path());
                (self.listener, self.accept) = (listener, accept);
                self.is_refused = false;
                warn!(
                    path,
                    "the file of the control socket was gone: it is made again"
                );
            }
            Err(error) if !self.is_refused => {
                self.is_refused = true;
                warn!(
                    path,
                    error, "the file of the control socket is gone and cannot be made again"
                );
            }
            Err(error) => debug!(path, error, "make the control socket again"),
        }
    }

    /// Accepts no more. Dropped, what is returned removes the file if it is still ours.
    pub fn close(self) -> Listener {
        self.listener
    }
}
