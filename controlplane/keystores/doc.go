// Package keystores has this process's connections to custom key stores, and is what both planes ask about them: a controlplane.KeyStores, whose connections have
// the methods that the data plane wants. It stands on hsm/cluster and on the client of an external key store's proxy, and knows neither tokens nor HTTP: both are
// handed in.
//
//	registry.go    Registry: the key stores by name, the clusters of the configuration; connecting again after a start
//	connection.go  Connection: one key store, connected or not; what requests come through
//	connect.go     the ways from one to the other, and why a key store does not come up
//	keys.go        keys of clusters, and external ones, for the control plane
//
// A connection is there from Add to Remove, connected or not. Being connected is a session: one pointer, which requests load once. Disconnect takes it away and
// waits, for a bounded time, until what is in it has come back; a result that comes back later than that is dropped.
//
// Goroutines: one for each key store that is connected again after a start, until it is; one for each external key store that is connected, which asks for the
// proxy's health. Close ends them.
package keystores
