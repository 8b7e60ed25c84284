//! Admission: may this registrant enter this group (design section 8)?
//!
//! A group carries an [`AdmissionList`]. Whoever stands at the door describes who wants in as a [`Candidate`] and asks
//! [`AdmissionList::check`]. The room knows neither connections nor tokens; what a candidate holds was proven, or
//! merely claimed, before it came here.

mod cidr;
mod list;
mod scope;

pub use cidr::{Cidr, CidrError};
pub use list::{AdmissionList, Candidate, ENTRIES_MAX, NotAdmitted, Rule};
pub use scope::{ScopeError, TokenScope};
