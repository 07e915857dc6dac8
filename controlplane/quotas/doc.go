// Package quotas keeps what every account may use: the values of package quota for the profile that the service runs with, and what somebody
// set instead. It charges requests (Charge, which takes no lock), says how many of a resource there may be (Max), and answers the operations
// of Service Quotas that are about AWS KMS (Serve), with two more that keyplane's command line uses.
//
//	quotas.go  Quotas: values, Charge, Max, changes
//	server.go  Serve: route, authorize, answer
//	api.go     the operations
//
// A change is a record in the store first and then in effect, before it is answered. Run reads the store again every few seconds: for changes
// whose outcome was not known, and for those of other processes. Run is the only goroutine.
package quotas
