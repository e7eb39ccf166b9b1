// One Elasticsearch node from its published jars: no archive, no container. Started by bin/elasticsearch.
// System properties: node.home (lib/, modules/, config/), node.data, node.port; node.until.eof=true: end when
// standard input does. Arguments: setting=value.
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.plugins.PluginsLoader;

public class Node {
    public static void main(String[] settings) throws Exception {
        if (Boolean.getBoolean("node.until.eof")) {
            Input.endWithIt();
        }
        Path home = Path.of(System.getProperty("node.home"));
        int port = Integer.getInteger("node.port");
        Settings.Builder builder = Settings.builder()
            .put("path.home", home.toString())
            .put("path.data", System.getProperty("node.data"))
            .put("cluster.name", "outbox-relay")
            .put("node.name", "node-1")
            .put("discovery.type", "single-node")
            .put("http.type", "netty4")
            .put("transport.type", "netty4")
            .put("http.port", port)
            .put("transport.port", "0")
            // A developer's disk is often fuller than a server's may be.
            .put("cluster.routing.allocation.disk.threshold_enabled", false);
        for (String setting : settings) {
            int at = setting.indexOf('=');
            builder.put(setting.substring(0, at), setting.substring(at + 1));
        }
        LogConfigurator.setNodeName("node-1");
        LogConfigurator.configureESLogging();
        LogConfigurator.configureWithoutConfig(Settings.builder().put("logger.level", "WARN").build());
        Environment environment = InternalSettingsPreparer.prepareEnvironment(
            builder.build(), Map.of(), home.resolve("config"), () -> "node-1");
        // false: the server's jars are on the class path, not in a named module
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir()), Set.of(), Map.of(), false);
        var node = new org.elasticsearch.node.Node(environment, plugins);
        node.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { node.close(); } catch (Exception e) { e.printStackTrace(); }
        }));
        System.out.println("elasticsearch listens on http://127.0.0.1:" + port);
        Thread.currentThread().join();
    }
}
