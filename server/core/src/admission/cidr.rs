//! Networks, as in `10.1.0.0/16` (RFC 4632) and `2001:db8::/32` (RFC 4291).
//!
//! The families are kept apart: `0.0.0.0/0` is every IPv4 address and `::/0` every IPv6 address. An IPv4 address that
//! arrives mapped into IPv6 (`::ffff:10.0.0.1`, as sockets that listen for both report it) is the IPv4 address it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const V4_BITS: u8 = 32;
const V6_BITS: u8 = 128;
/// What precedes the IPv4 address in a mapped one.
const MAPPED_BITS: u8 = V6_BITS - V4_BITS;

/// A network: all addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, u8)", into = "(IpAddr, u8)")]
pub struct Cidr {
    /// Its first address; never one mapped into IPv6.
    network: IpAddr,
    /// How many bits its addresses share.
    prefix: u8,
}

/// A text or a pair that is no network. Correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// What stands before the slash is no address.
    #[error(
        "{text:?} is no network: use an address and how many of its bits count, such as 10.1.0.0/16 or 2001:db8::/32"
    )]
    NotANetwork {
        /// The beginning of the text.
        text: String,
    },
    /// More bits than an address has.
    #[error("{network} has {bits} bits, {prefix} cannot count")]
    PrefixTooLong {
        /// The address.
        network: IpAddr,
        /// How many bits were named.
        prefix: u8,
        /// How many there are.
        bits: u8,
    },
    /// Not the first address of its network: a typo, or another network was meant.
    #[error("{address}/{prefix} has bits set behind its prefix: use {network}/{prefix}, or more bits")]
    BitsBehindPrefix {
        /// As it was named.
        address: IpAddr,
        /// How many bits were named.
        prefix: u8,
        /// The first address of that network.
        network: IpAddr,
    },
}

impl Cidr {
    /// The network that begins at `network` and whose addresses share its first `prefix` bits.
    ///
    /// # Errors
    ///
    /// [`CidrError`] says what does not fit.
    pub fn new(network: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let bits = bits_of(network);
        if prefix > bits {
            return Err(CidrError::PrefixTooLong {
                network,
                prefix,
                bits,
            });
        }
        let first = masked(network, prefix);
        if first != network {
            return Err(CidrError::BitsBehindPrefix {
                address: network,
                prefix,
                network: first,
            });
        }
        // A mapped network that passed the check above has at least the bits that make it a mapped one.
        let mapped = match network {
            IpAddr::V6(v6) => v6.to_ipv4_mapped(),
            IpAddr::V4(_) => None,
        };
        Ok(match mapped {
            Some(v4) => Self {
                network: v4.into(),
                prefix: prefix - MAPPED_BITS,
            },
            None => Self { network, prefix },
        })
    }

    /// Whether an address belongs to it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && masked(address, self.prefix) == self.network
    }
}

fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => V4_BITS,
        IpAddr::V6(_) => V6_BITS,
    }
}

/// The address with nothing behind its first `prefix` bits, of which it has as many.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl((V4_BITS - prefix).into()).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl((V6_BITS - prefix).into()).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// An address without a slash is the network of that address alone.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let not_a_network = || CidrError::NotANetwork {
            text: text.chars().take(64).collect(),
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| not_a_network())?;
        let prefix = match prefix {
            None => bits_of(address),
            // Digits and nothing else: the number parser would take a sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| not_a_network())?
            }
            Some(_) => return Err(not_a_network()),
        };
        Self::new(address, prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<(IpAddr, u8)> for Cidr {
    type Error = CidrError;

    fn try_from((network, prefix): (IpAddr, u8)) -> Result<Self, CidrError> {
        Self::new(network, prefix)
    }
}

impl From<Cidr> for (IpAddr, u8) {
    fn from(cidr: Cidr) -> Self {
        (cidr.network, cidr.prefix)
    }
}
