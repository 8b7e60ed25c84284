//! A small HTTP client for the consumers: pooled connections, a deadline per call, bounded answers.

use std::time::Duration;

use anyhow::{Context, ensure};
use axum::body::Body;
use axum::http::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::services::INSTANCE_HEADER;

const CALL_MAX: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    inner: Client<HttpConnector, Body>,
}

/// A JSON answer and the instance that gave it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) instance: String,
    pub(crate) json: Value,
}

impl HttpClient {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CALL_MAX));
        Self {
            inner: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Calls `http://{authority}{path}`; an error is anything but a JSON answer with status 200 in time.
    pub(crate) async fn call(
        &self,
        method: Method,
        authority: &str,
        path: &str,
        body: String,
    ) -> anyhow::Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{authority}{path}"))
            .header("content-type", "text/plain; charset=utf-8")
            .body(Body::from(body))?;
        tokio::time::timeout(CALL_MAX, self.exchange(request))
            .await
            .context("no answer in time")?
    }

    async fn exchange(&self, request: Request<Body>) -> anyhow::Result<Answer> {
        let response = self.inner.request(request).await?;
        ensure!(response.status().is_success(), "status {}", response.status());
        let instance = response
            .headers()
            .get(INSTANCE_HEADER)
            .and_then(|name| name.to_str().ok());
        let instance = instance.unwrap_or("unnamed").to_owned();
        let body = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
        Ok(Answer {
            instance,
            json: serde_json::from_slice(&body)?,
        })
    }
}
