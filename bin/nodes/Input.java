// What the nodes of both products do with their standard input.
import java.io.IOException;

class Input {
    /** Ends this process with its input: a pipe from the parent ends however the parent does, even by SIGKILL. */
    static void endWithIt() {
        Thread reader = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (IOException e) {
                // as good as its end
            }
            System.exit(0);
        }, "until-eof");
        reader.setDaemon(true);
        reader.start();
    }
}
