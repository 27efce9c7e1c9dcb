//! A control socket with a few answers behind it.

use std::sync::Arc;
use std::thread::JoinHandle;

use byway::api::server::{self, Listener};
use byway::api::types::{Error, Request, Response};
use tokio_util::sync::CancellationToken;

/// Serves `answer` until `stop`, in a thread that first does `prepare`.
pub fn serve(
    listener: Listener,
    stop: CancellationToken,
    prepare: impl FnOnce() + Send + 'static,
    answer: fn(Request) -> Result<Response, Error>,
) -> JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || {
        prepare();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server::run(
                listener,
                Arc::new(move |request, _| Box::pin(async move { answer(request) })),
                stop,
            ))
    })
}
