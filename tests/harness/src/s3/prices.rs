//! What the requests would have cost: Amazon's list prices of 2025 for us-east-1, the first tier of each.
//!
//! Answers of 500 and above are not billed; a request whose answer was lost is.

use super::{Operation, Request};

/// Dollars for a thousand writing requests, a thousand reading ones, a thousand requests to thaw, and a GB that is taken out of the class.
struct Class {
    name: &'static str,
    put: f64,
    get: f64,
    thaw: f64,
    retrieved_gb: f64,
}

const CLASSES: [Class; 6] = [
    Class { name: "STANDARD", put: 0.005, get: 0.0004, thaw: 0.0, retrieved_gb: 0.0 },
    Class { name: "STANDARD_IA", put: 0.01, get: 0.001, thaw: 0.0, retrieved_gb: 0.01 },
    Class { name: "ONEZONE_IA", put: 0.01, get: 0.001, thaw: 0.0, retrieved_gb: 0.01 },
    Class { name: "GLACIER_IR", put: 0.02, get: 0.01, thaw: 0.0, retrieved_gb: 0.03 },
    Class { name: "GLACIER", put: 0.03, get: 0.0004, thaw: 0.05, retrieved_gb: 0.01 },
    Class { name: "DEEP_ARCHIVE", put: 0.05, get: 0.0004, thaw: 0.10, retrieved_gb: 0.02 },
];

/// A month of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bill {
    /// PUT, COPY, POST and LIST, parts of uploads included.
    pub dear: u64,
    /// GET, HEAD and what else reads.
    pub cheap: u64,
    /// DELETE, and uploads that were given up.
    pub free: u64,
    /// Requests that failed on the server's side.
    pub not_billed: u64,
    /// All of it, and what was taken out of colder classes.
    pub dollars: f64,
}

/// What these requests cost.
pub(super) fn bill(requests: &[Request]) -> Bill {
    let mut bill = Bill::default();
    for request in requests {
        if request.status >= 500 {
            bill.not_billed += 1;
            continue;
        }
        let class = CLASSES.iter().find(|class| class.name == request.class).unwrap_or(&CLASSES[0]);
        match request.operation {
            Operation::Put | Operation::List | Operation::Begin | Operation::Part | Operation::Complete | Operation::Other => {
                bill.dear += 1;
                // A listing has no class.
                bill.dollars += if request.operation == Operation::List { CLASSES[0].put } else { class.put } / 1000.0;
            }
            Operation::Get | Operation::Head => {
                bill.cheap += 1;
                bill.dollars += class.get / 1000.0 + request.answer_size as f64 / 1e9 * class.retrieved_gb;
            }
            Operation::Restore => {
                bill.dear += 1;
                bill.dollars += class.thaw / 1000.0;
            }
            Operation::Delete | Operation::Abort => bill.free += 1,
        }
    }
    bill
}
