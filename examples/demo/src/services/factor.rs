//! Factors a number by trial division.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// Larger numbers would keep the instance busy for too long.
const NUMBER_MAX: u64 = 1 << 34;

#[derive(Debug, Deserialize)]
struct Wanted {
    n: u64,
}

#[derive(Debug, Serialize)]
struct Factored {
    n: u64,
    factors: Vec<u64>,
    prime: bool,
}

pub(super) fn routes() -> Router {
    Router::new().route("/factor", get(factor))
}

async fn factor(Query(Wanted { n }): Query<Wanted>) -> Result<Json<Factored>, (StatusCode, String)> {
    if n > NUMBER_MAX {
        return Err((
            StatusCode::BAD_REQUEST,
            format!("n is {n}, at most {NUMBER_MAX} is allowed"),
        ));
    }
    let factors = prime_factors(n);
    let prime = factors.len() == 1;
    Ok(Json(Factored { n, factors, prime }))
}

/// In ascending order; their product is `n`. Empty for 0 and 1.
fn prime_factors(mut n: u64) -> Vec<u64> {
    let mut factors = Vec::new();
    let mut divisor = 2;
    while n > 1 && divisor * divisor <= n {
        while n.is_multiple_of(divisor) {
            factors.push(divisor);
            n /= divisor;
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if n > 1 {
        factors.push(n);
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_the_number() {
        assert_eq!(prime_factors(360), [2, 2, 2, 3, 3, 5]);
        assert_eq!(prime_factors(4_294_967_291), [4_294_967_291]);
        assert!(prime_factors(1).is_empty() && prime_factors(0).is_empty());
        for n in 2..2_000 {
            assert_eq!(prime_factors(n).iter().product::<u64>(), n);
        }
    }
}
