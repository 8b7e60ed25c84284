//! Requests above the transport's bound: refused before they are decoded, and in our own words.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Map};
use rollcall_proto::v1;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::metrics::DoorsMetrics;
use super::status;

/// How the transport's refusal begins; that of an answer that is too large speaks of an encoded message.
const REFUSAL: &str = "Error, decoded message length too large:";

/// A service whose oversized requests are answered like any other error: `TOO_LARGE`, with the details that
/// clients read.
#[derive(Clone, Debug)]
pub(crate) struct Oversize<S> {
    inner: S,
    /// Each call clones the service, and these are many counters.
    metrics: Arc<DoorsMetrics>,
}

impl<S> Oversize<S> {
    pub(crate) fn new(inner: S, metrics: DoorsMetrics) -> Self {
        Self {
            inner,
            metrics: Arc::new(metrics),
        }
    }
}

impl<S: NamedService> NamedService for Oversize<S> {
    const NAME: &'static str = S::NAME;
}

type Answered<B, E> = Result<http::Response<B>, E>;

impl<S, Q, B, E> Service<Q> for Oversize<S>
where
    S: Service<Q, Response = http::Response<B>, Error = E, Future = BoxFuture<'static, Answered<B, E>>>,
    B: Default,
{
    type Response = http::Response<B>;
    type Error = E;
    type Future = Map<S::Future, Box<dyn FnOnce(Answered<B, E>) -> Answered<B, E> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let metrics = self.metrics.clone();
        self.inner.call(request).map(Box::new(move |answered| {
            let answer = answered?;
            let found = answer.extensions().get::<Status>().and_then(of_transport);
            Ok(match found {
                Some(error) => {
                    metrics.error(&error);
                    status::status(&error).into_http()
                }
                None => answer,
            })
        }))
    }
}

/// The transport's refusal of a request as one of ours; `None`: it is something else.
pub(crate) fn of_transport(refusal: &Status) -> Option<v1::Error> {
    sizes(refusal).map(status::of_oversize)
}

/// What was found and what is allowed, if it is the transport's refusal of a request.
pub(crate) fn sizes(refusal: &Status) -> Option<&str> {
    let sizes = refusal.message().strip_prefix(REFUSAL)?;
    (refusal.code() == Code::OutOfRange).then(|| sizes.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_refusal_of_a_request_is_reworded() {
        let request = "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes";
        let error = of_transport(&Status::out_of_range(request)).unwrap();
        assert_eq!(error.code(), v1::ErrorCode::TooLarge);
        assert!(error.message.contains("found 9 bytes"), "{}", error.message);
        let answer = "Error, encoded message length too large: found 9 bytes, the limit is: 4 bytes";
        assert_eq!(of_transport(&Status::out_of_range(answer)), None);
        assert_eq!(of_transport(&Status::internal(request)), None);
    }
}
