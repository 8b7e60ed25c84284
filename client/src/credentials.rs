//! What a client shows of itself with every call: its token, and the environment it claims.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::RegistryConfig;
use crate::error::Error;

/// Longest token, in bytes; the servers take no longer one.
const TOKEN_BYTES_MAX: usize = 512;
/// Longest name of an environment, in bytes.
const ENVIRONMENT_BYTES_MAX: usize = 128;

/// A bearer token. It never shows in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl<T: Into<String>> From<T> for Token {
    fn from(token: T) -> Self {
        Self(token.into().into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Puts it on every call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    authorization: Option<MetadataValue<Ascii>>,
    environment: Option<MetadataValue<Ascii>>,
}

impl Credentials {
    pub(crate) fn new(config: &RegistryConfig) -> Result<Self, Error> {
        Ok(Self {
            authorization: config.token.as_ref().map(authorization).transpose()?,
            environment: config.environment.as_deref().map(environment).transpose()?,
        })
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        if let Some(environment) = &self.environment {
            metadata.insert("rollcall-environment", environment.clone());
        }
        Ok(request)
    }
}

fn authorization(token: &Token) -> Result<MetadataValue<Ascii>, Error> {
    let fits = !token.0.is_empty()
        && token.0.len() <= TOKEN_BYTES_MAX
        && token.0.bytes().all(|byte| byte.is_ascii_graphic());
    let value = format!("Bearer {}", token.0);
    let mut value: MetadataValue<Ascii> =
        value
            .parse()
            .ok()
            .filter(|_| fits)
            .ok_or_else(|| Error::InvalidArgument {
                subject: "token".into(),
                message: format!(
                    "token: it is not of 1 to {TOKEN_BYTES_MAX} printable ASCII characters without spaces"
                ),
            })?;
    value.set_sensitive(true);
    Ok(value)
}

fn environment(name: &str) -> Result<MetadataValue<Ascii>, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = !name.is_empty() && name.len() <= ENVIRONMENT_BYTES_MAX && name.chars().all(allowed);
    name.parse()
        .ok()
        .filter(|_| fits)
        .ok_or_else(|| Error::InvalidArgument {
            subject: "environment".into(),
            message: format!(
                "environment: {name:?} is not of 1 to {ENVIRONMENT_BYTES_MAX} characters of [A-Za-z0-9._-]"
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_shows_them_and_no_debug_output_does() {
        let config = RegistryConfig::new(["a:1"]).token("s3cret").environment("prod");
        let mut credentials = Credentials::new(&config).unwrap();
        let shown = credentials.call(Request::new(())).unwrap();
        assert_eq!(shown.metadata().get("authorization").unwrap(), "Bearer s3cret");
        assert_eq!(shown.metadata().get("rollcall-environment").unwrap(), "prod");
        let printed = format!("{config:?} {credentials:?} {:?}", shown.metadata());
        assert!(!printed.contains("s3cret"), "{printed}");

        let mut nothing = Credentials::new(&RegistryConfig::new(["a:1"])).unwrap();
        assert!(nothing.call(Request::new(())).unwrap().metadata().is_empty());
    }

    #[test]
    fn what_cannot_be_shown_is_refused_at_once_without_quoting_the_token() {
        for token in ["", "two words", "line\nbreak", "ümlaut", &"x".repeat(513)] {
            let error = Credentials::new(&RegistryConfig::new(["a:1"]).token(token)).unwrap_err();
            assert!(
                matches!(&error, Error::InvalidArgument { subject, .. } if subject == "token"),
                "{error}"
            );
            assert!(token.is_empty() || !error.to_string().contains(token), "{error}");
        }
        for environment in ["", "p r", "prod/feed", &"x".repeat(129)] {
            let error = Credentials::new(&RegistryConfig::new(["a:1"]).environment(environment)).unwrap_err();
            assert!(
                matches!(&error, Error::InvalidArgument { subject, .. } if subject == "environment"),
                "{error}"
            );
        }
    }
}
