// Package quota is the list of AWS KMS quotas: their names, codes and values, and which request quota an operation is charged to. Values are
// those of the AWS KMS Developer Guide, "Quotas", of mid-2026. It knows neither accounts nor time: ratelimit counts, controlplane/quotas keeps
// what an account has instead.
//
//	pools.go      pools of requests, PoolOf
//	catalogue.go  Quotas: every quota with its values in the profiles
package quota
